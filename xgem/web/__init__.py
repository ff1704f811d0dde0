"""What pages and APIs have in common: the application with its protection, the database, and running them."""
