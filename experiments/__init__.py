"""One run: config -> data -> train -> evaluate -> record."""
