"""From fields to texts and ids: templates, formats, and the tokenizers that read them.

layout          the parts of a prompt: texts, fields, virtual tokens, special tokens
template        the two notations of a layout, and their markers
base_format     what every format offers; prompt_format is the one that reads templates
text_form       a layout as text with markers, as in ruPrompts
encoding        a layout as ids
targets         a layout with the text to generate after it, as ids
continuations   words as they continue a text
verbalizers     classes, their label words, and their scores
init_texts      the tokens that virtual tokens are initialized from
patched_input   the ids that a patched model reads
preprocessing   training examples from the rows of a data set, as in ruPrompts
texts           plain strings: what counts as text, and which field a string fills

Of a tokenizer:

tokenizer_state     what is known about one, kept while it does not change
special_tokens      its special tokens, and where those of a prompt are
marker_tokens       how a marker becomes one of its tokens
private_tokenizer   a copy in which no text can contain a marker; vocabulary takes words out of it
spans               which tokens a stretch of characters became
"""
