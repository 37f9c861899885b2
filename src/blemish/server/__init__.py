"""The inspection station: judges what arrives, remembers every verdict, shows it and learns from what people say."""
