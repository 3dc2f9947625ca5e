"""nsam: a language and compiler for nested learning."""
