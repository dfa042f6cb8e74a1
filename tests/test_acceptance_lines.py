"""What an attachment promises, line by line, and the tests that hold it to that."""

import ast
from pathlib import Path

import pytest

HERE = Path(__file__).parent

LINES: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("idle, every family computes what it did, bit for bit", ("core::idle_spliced_ablated_and_detached_models",)),
    2: ("splices and ablations are what plain hooks make of them", ("core::idle_spliced_ablated_and_detached_models",)),
    3: (
        "detaching, twice and in any order, leaves no class, attribute or hook behind",
        ("core::idle_spliced_ablated_and_detached_models", "core::two_dictionaries_on_one_block"),
    ),
    4: ("an edit that changes nothing changes no bit, in fp32 and bf16", ("core::an_edit_that_changes_no_feature",)),
    5: ("names of states, parameters and modules stay", ("core::names_and_state_of_the_model_stay",)),
    6: ("a model saved while attached is stock", ("core::names_and_state_of_the_model_stay",)),
    7: ("casting the model leaves the dictionary in fp32", ("core::casting_the_model_leaves",)),
    8: ("autocast does not reach the dictionary", ("core::autocast_does_not_reach",)),
    9: ("hidden states hold what the attachment put there", ("core::hidden_states_hold_what",)),
    10: (
        "generation is the same with, without and with a static cache",
        ("generation::an_edit_gives_the_same_tokens",),
    ),
    11: ("a value per row equals a run per value, with beams", ("generation::one_value_per_row_equals",)),
    12: ("values for another number of rows are refused", ("generation::values_for_another_number_of_rows",)),
    13: ("positions mean the same tokens with the cache and without", ("generation::positions_mean_the_same_tokens",)),
    14: ("padding changes nothing", ("generation::padding_on_either_side",)),
    15: ("threads with different edits never mix", ("threads::threads_with_different_edits",)),
    16: ("threads keep their own masks inside one forward", ("threads::threads_keep_their_own_masks",)),
    17: ("a bound function carries its edit along", ("threads::a_bound_function_carries",)),
    18: ("an edit may be left in another context", ("threads::an_edit_left_in_another_context",)),
    19: ("an applied edit reaches every thread until removed", ("threads::an_applied_edit_reaches_every_thread",)),
    20: ("two dictionaries on one block act in order and leave in any", ("core::two_dictionaries_on_one_block",)),
    21: ("a taken name is refused", ("core::a_taken_or_impossible_name",)),
    22: ("an exception inside an edit leaves the model as it was", ("core::an_exception_inside_an_edit",)),
    23: ("a deep copy keeps its own splice", ("core::a_deep_copy_keeps_its_own_splice",)),
    24: ("a pickled model keeps its applied edits", ("core::a_pickled_model_keeps",)),
    25: ("checkpointed blocks give the same gradients", ("gradients::recomputed_layers_see_the_edits",)),
    26: ("so do modules inside them, recomputed late", ("gradients::recomputed_layers_see_the_edits",)),
    27: ("a model compiled before attaching follows every step", ("compile::a_model_compiled_before_attaching",)),
    28: ("edits of one structure share a graph", ("compile::edits_of_one_structure_share",)),
    29: ("an exported model keeps its splice", ("compile::an_exported_model_keeps",)),
    30: ("nnsight reads and edits features, wrapped before or after", ("nnsight::a_trace_reads_and_edits_features",)),
    31: ("nnsight sees the dictionary that was attached last", ("nnsight::another_dictionary_attached_later",)),
    32: ("one dictionary on two layers is two places", ("nnsight::one_dictionary_on_two_layers",)),
    33: ("nnsight iterates over generation", ("nnsight::generate_with_iteration",)),
    34: ("a model that was only declared is loaded first", ("nnsight::a_model_that_was_only_declared",)),
    35: (
        "runs without numbers leave the weights alone",
        ("core::scan_on_the_meta_device", "nnsight::scan_leaves_the_dictionary"),
    ),
    36: (
        "offloaded models keep the dictionary in memory",
        ("ecosystem::offloaded_models_keep", "ecosystem::models_with_layers_on_disk"),
    ),
    37: ("an adapter on the very module is noticed", ("ecosystem::an_adapter_on_the_very_module",)),
    38: ("layers count from either end", ("core::layers_count_from_either_end",)),
    39: ("detached dictionaries are freed at once", ("core::detached_dictionaries_are_freed",)),
    40: ("inference mode equals no_grad", ("core::inference_mode_equals",)),
    41: (
        "sites are proved on every architecture that builds; ambiguous stacks are listed",
        ("sites_sweep::every_architecture_is_right_or_refused", "sites::ambiguous_stacks_are_listed"),
    ),
    42: ("sharded models equal the whole one", ("ecosystem::models_sharded_over_two_processes",)),
    43: ("continuous batching refuses what it cannot serve", ("generation::continuous_batching_obeys",)),
    44: ("remote runs are refused", ("nnsight::remote_runs_are_refused_while",)),
    45: ("gradients pass through the features alone, when asked", ("gradients::a_detached_error_lets",)),
    46: ("shared blocks are told", ("core::shared_blocks_are_told", "sites::shared_block_is_told")),
    47: ("an idle site costs at most three microseconds", ("compile::an_idle_site_makes",)),
}
"""Each promise with its tests: their file, less ``test_`` and ``acceptance_``, and how their names begin."""


def names_in(file: str) -> list[str]:
    """Return the names of the tests in a file, less ``test_``."""
    path = next(p for p in (HERE / f"test_acceptance_{file}.py", HERE / f"test_{file}.py") if p.exists())
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return [f.name.removeprefix("test_") for f in functions if f.name.startswith("test_")]


@pytest.mark.parametrize("line", LINES)
def test_each_promise_has_its_tests(line: int) -> None:
    for reference in LINES[line][1]:
        file, beginning = reference.split("::")
        assert [name for name in names_in(file) if name.startswith(beginning)], reference


def test_no_promise_is_left_out() -> None:
    assert list(LINES) == list(range(1, 48))
