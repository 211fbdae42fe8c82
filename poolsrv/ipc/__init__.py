"""Every process. What processes say to each other, and the records of ``poolsrv status``. Imports core."""
