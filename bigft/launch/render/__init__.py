"""What is to be started -> the text of a script or manifest; nothing is started here."""
