"""The server: a queue of requests in a database, workers, the HTTP API and the page on it."""
