"""DICOM out: generated samples as objects of one study; and a PACS, from which inputs come and to which objects go."""
