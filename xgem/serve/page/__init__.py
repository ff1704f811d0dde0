"""The page on the HTTP API: templates, scripts and style sheet of its own, and the routes that serve them."""
