"""What is to be started -> the text of a script or manifest. Nothing is started or looked up here."""
