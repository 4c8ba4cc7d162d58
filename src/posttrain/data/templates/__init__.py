"""Chat templates: rendering conversations, reading answers back, and going on after a sample.

template    Template: the facts of a tokenizer's chat template, and render, prompt, parse, extend
jinja       messages to text, in the dialect that the template wants
turns       a conversation as turns: the text before an answer, and the answer as it is written
endings     the token that ends an answer
thinking    how reasoning is opened and closed
reading     an answer's text back to a message
calls       tool calls in an answer's text
default     a template for tokenizers without one
"""
