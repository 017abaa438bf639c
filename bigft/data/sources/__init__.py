"""Where rows come from: what the user names becomes files, data sets and weighted parts."""
