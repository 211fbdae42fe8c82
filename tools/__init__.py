"""Tools that build what users get: man pages, the site, distributions. Nothing here is installed."""
