"""A pipeline of transformers whose model adapts. The weights are random: take yours, by from_pretrained."""

import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.modeling_outputs import SequenceClassifierOutput

from testtime.methods import Tent

words = {
    w: i
    for i, w in enumerate(["[PAD]", "[UNK]", "the", "film", "was", "good", "bad", "long", "and", "funny"])
}
inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
names = ["input_ids", "attention_mask"]
tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", model_input_names=names)
config = hf.DistilBertConfig(vocab_size=len(words), dim=32, n_layers=1, n_heads=2, hidden_dim=64)
model = hf.DistilBertForSequenceClassification(config)
adapter = Tent(model)


class Adapting(hf.TextClassificationPipeline):
    def _forward(self, inputs):
        return SequenceClassifierOutput(logits=adapter(inputs).logits)


pipe = Adapting(model=model, tokenizer=tokenizer)
answers = pipe(["the film was good", "the film was long and bad", "funny"] * 4, batch_size=6)
print(f"{len(answers)} answers such as {sorted(answers[0])}, {int(adapter.clock)} batches learned")
