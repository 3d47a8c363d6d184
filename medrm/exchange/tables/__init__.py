"""Tables in files: their rows and cells, in bounded time and memory."""
