"""How settings are declared, named, read and explained. Knows no particular setting's meaning."""
