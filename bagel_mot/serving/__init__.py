"""One model for many users at once: the queue that the server and the page share, and the HTTP interface."""
