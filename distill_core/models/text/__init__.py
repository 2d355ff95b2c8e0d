"""Networks of text: GPT-2's, the decoder of Llama's family, and what they are made of."""
