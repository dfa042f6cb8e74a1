"""One published dictionary of each reader, and its publisher's figures: `pytest -m hub`, on machines with the Hub."""

import pytest
import torch

from hfsae.dictionary import SAE
from hfsae.errors import HubError
from hfsae.hub.calls import Unreachable

pytestmark = pytest.mark.hub

PUBLISHED = [
    ("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre", "standard", 768, 24576),
    ("jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs", "v5_32k_layer_8.pt", "topk", 768, 32768),
    ("google/gemma-scope-2b-pt-res", "layer_12/width_16k/average_l0_82", "jumprelu", 2304, 16384),
    ("google/gemma-scope-2-270m-pt", "resid_post_all/layer_9_width_16k_l0_big", "jumprelu", 640, 16384),
    ("canrager/lm_sae", "pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0", "topk", 512, None),
    ("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", "layer14.sae.pt", "topk", 2048, 32768),
    ("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x", "jumprelu", 4096, 32768),
    ("mwhanna/qwen3-0.6b-transcoders-lowl0", "layer_14.safetensors", "standard", 1024, None),
]


@pytest.fixture(autouse=True)
def _asked_for_and_reachable(request):
    if "hub" not in (request.config.option.markexpr or ""):
        pytest.skip("downloads gigabytes; asked for with `pytest -m hub`")
    from hfsae.hub.calls import Target, api, reading

    try:
        reading(lambda: api(None).model_info("openai-community/gpt2", timeout=5), Target("openai-community/gpt2"))
    except Unreachable as error:
        pytest.skip(f"the Hub cannot be reached from here: {error}")


@pytest.mark.parametrize(("repo_id", "subfolder", "architecture", "d_in", "d_sae"), PUBLISHED)
def test_published_dictionary_loads_with_the_sizes_its_publisher_gives(repo_id, subfolder, architecture, d_in, d_sae):
    try:
        sae = SAE.from_pretrained(repo_id, subfolder=subfolder)
    except HubError as error:
        pytest.skip(str(error))  # gated for this machine's token
    assert (sae.config.architecture, sae.config.d_in) == (architecture, d_in)
    assert d_sae is None or sae.config.d_sae == d_sae
    assert sae.config.base_model is not None


def test_gpt2_dictionary_reconstructs_its_model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import hfsae

    model = AutoModelForCausalLM.from_pretrained("openai-community/gpt2").eval()
    tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    sae = SAE.from_pretrained("jbloom/GPT2-Small-OAI-v5-32k-resid-post-SAEs", layer=8)
    texts = ["The Eiffel Tower is in Paris, and the Colosseum stands in Rome. " * 8]
    with torch.no_grad():
        fit = hfsae.check(model, sae, texts, tokenizer=tokenizer)
    assert fit.evaluation.l0 == pytest.approx(32, abs=1)
    assert fit.evaluation.explained_variance > 0.8  # the publisher gives 0.9
