"""Static files: from the path of a URL to a response, by the rules of RFC 9110.

- `options` is what can be set; `media_types` knows what a file is by its suffix.
- `tree` finds and opens files, and nothing outside a directory; `coding` chooses among precompressed neighbours.
- `conditions` and `ranges` are sections 13 and 14 of the RFC; `listing` makes pages of directories. None of these knows
  of a connection.
- `transfer` sends a file; `answer` is one request, and `service` all of it.
"""
