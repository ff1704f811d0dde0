"""Reading, preparing and caching studies: files and data sets in, arrays and text out."""
