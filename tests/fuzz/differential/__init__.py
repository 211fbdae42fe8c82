"""The same requests to poolsrv's parser and to others: where they disagree about an end, poolsrv has to refuse."""
