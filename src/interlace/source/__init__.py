"""Operations inside a forward: find them, name them, and have the code report them as it runs."""
