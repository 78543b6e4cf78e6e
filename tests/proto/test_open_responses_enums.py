"""The words of the Open Responses API, exactly as it lists them."""

from __future__ import annotations

import pytest

from tensoryard.proto import open_responses_enums as enums

WORDS = {
    enums.ToolChoiceValueEnum: "none auto required",
    enums.MessageRole: "user assistant system developer",
    enums.MessageStatus: "in_progress completed incomplete",
    enums.ResponseStatus: "in_progress completed incomplete failed",
    enums.ImageDetail: "low high auto",
    enums.ReasoningEffortEnum: "none low medium high xhigh max",
    enums.ReasoningSummaryEnum: "concise detailed auto",
    enums.ServiceTierEnum: "auto default flex priority",
    enums.TruncationEnum: "auto disabled",
    enums.VerbosityEnum: "low medium high",
    enums.IncludeEnum: "reasoning.encrypted_content message.output_text.logprobs",
    enums.GeneratedMediaResponseFormat: "url b64_json",
}


@pytest.mark.parametrize("kind", WORDS, ids=lambda kind: kind.__name__)
def test_words(kind):
    """Every value, in order, and each equal to its text."""
    assert [word.value for word in kind] == WORDS[kind].split()
    assert all(word == word.value for word in kind)
