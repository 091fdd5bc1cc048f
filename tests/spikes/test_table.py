"""``hb.connect.from_table``: columns, ids, signs, duplicates, and errors that name table, column and row."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch

import hibana as hb

BIG = 720575940600000000  # float64 has no exact form of these ids
EDGES = {
    "pre": ["b", "a", "c", "b"],
    "post": ["a", "b", "a", "a"],
    "weight": [3, 2, 5, 4],
    "sign": [1, -1, 1, 1],
}


def dense(edges, neurons=None, **options):
    connections, ids = hb.connect.from_table(edges, neurons, **options)
    size = len(ids)
    layer = hb.SparseLinear(size, size, connections, bias=False)
    return layer.to_dense().tolist(), ids.tolist()


def test_ids_of_text_in_ascending_order_and_duplicates():
    assert dense(EDGES) == ([[0, 7, 5], [-2, 0, 0], [0, 0, 0]], ["a", "b", "c"])
    connections, _ = hb.connect.from_table(EDGES, duplicates="keep")
    assert connections.weights.tolist() == [-2, 3, 4, 5]
    assert hb.connect.from_table(EDGES)[0].weights.tolist() == [-2, 7, 5]


def test_duplicates_with_different_delays_are_kept():
    connections, _ = hb.connect.from_table({**EDGES, "delay": [1, 0, 0, 2]})
    assert connections.weights.tolist() == [-2, 3, 4, 5]
    assert connections.delays.tolist() == [0, 1, 2, 0]
    connections, _ = hb.connect.from_table(EDGES, delay=7)
    assert connections.delays.tolist() == [7, 7, 7]


def test_ids_of_64_bits_in_the_order_of_the_neurons():
    edges = pd.DataFrame(
        {"pre_root_id": [BIG + 1, BIG + 3], "post_root_id": [BIG + 3, BIG + 2], "syn_count": [4, 5]}
    )
    neurons = pd.DataFrame(
        {"root_id": [BIG + 3, BIG + 2, BIG + 9, BIG + 1], "nt": ["GABA", "ACH", "ACH", None]}
    )
    matrix, ids = dense(edges, neurons)
    assert ids == [BIG + 3, BIG + 2, BIG + 9, BIG + 1]
    assert matrix == [[0, 0, 0, 4], [-5, 0, 0, 0], [0] * 4, [0] * 4]
    as_text = neurons.astype({"root_id": str})
    assert dense(edges, as_text) == (matrix, [str(id_) for id_ in ids])


def test_the_published_columns_of_shiu_et_al():
    edges = pd.DataFrame(
        {
            "Presynaptic_ID": [BIG + 2, BIG + 1], "Postsynaptic_ID": [BIG + 1, BIG + 3],
            "Presynaptic_Index": [0, 0], "Postsynaptic_Index": [0, 0], "Connectivity": [8, 9],
            "Excitatory": [-1, 1], "Excitatory x Connectivity": [-8, 9],
        }
    )  # fmt: skip
    neurons = pd.DataFrame({"Completed": [True] * 3}, index=[BIG + 1, BIG + 2, BIG + 3])
    expected = [[0, -8, 0], [0, 0, 0], [9, 0, 0]]
    assert dense(edges, neurons)[0] == expected
    assert dense(edges, neurons.rename_axis("").reset_index())[0] == expected
    indices = edges.drop(columns=["Presynaptic_ID", "Postsynaptic_ID"])
    assert dense(indices, neurons)[0] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert dense(indices) == ([[1]], [0])


def test_signs():
    edges = {"source": [1, 2], "target": [2, 1], "n_syn": [3, 4]}
    cases = [
        ({**edges, "nt_type": ["GLUT", "DA"]}, None, {}, [-3, 4]),
        (edges, {"id": [1, 2], "sign": [-1, 1]}, {}, [-3, 4]),
        (edges, {"id": [1, 2], "transmitter": ["acetylcholine", "gaba"]}, {}, [3, -4]),
        (edges, {"id": [1, 2], "polarity": [2.0, -0.5]}, {"sign": "polarity"}, [3, -4]),
        ({**edges, "excitatory": [False, True]}, None, {}, [-3, 4]),
        (edges, None, {"sign": 1}, [3, 4]),
        ({**edges, "n_syn": [-3, 4]}, None, {}, [-3, 4]),
        ({"source": [1, 2], "target": [2, 1]}, None, {"sign": 1}, [1, 1]),
        (edges, None, {"sign": 1, "weight": 0.5}, [0.5, 0.5]),
    ]
    for table, neurons, options, expected in cases:
        connections, _ = hb.connect.from_table(table, neurons, **options)
        assert connections.weights.tolist() == expected, table
    with pytest.warns(hb.NetworkWarning, match="edges: all synapses excite.*pass sign=1"):
        hb.connect.from_table(edges)


def test_the_log_says_which_columns_were_taken(caplog):
    with caplog.at_level(logging.INFO, "hibana"):
        hb.connect.from_table({**EDGES, "pre_index": [0, 0, 0, 0]})
    assert "edges: source from column 'pre'" in caplog.messages
    assert any(message.startswith("1 rows have") for message in caplog.messages)


def test_dtype_and_large_tables():
    generator = np.random.default_rng(0)
    pre, post = generator.integers(0, 500, (2, 20000))
    weights = generator.integers(-20, 20, 20000)
    ids = generator.choice(10**12, 500, replace=False)
    edges = pd.DataFrame({"pre": ids[pre], "post": ids[post], "weight": weights})
    connections, order = hb.connect.from_table(edges, {"id": ids}, dtype=torch.float64)
    expected = np.zeros((500, 500))
    np.add.at(expected, (post, pre), weights)
    layer = hb.SparseLinear(500, 500, connections, bias=False).double()
    assert connections.weights.dtype == torch.float64
    assert (layer.to_dense().detach().numpy() == expected).all()
    assert (order == ids).all()


E = {"source": [1, 2, 3], "target": [2, 3, 1], "weight": [1.0, 2.0, 3.0], "sign": [1, 1, 1]}


@pytest.mark.parametrize(
    ("edges", "neurons", "options", "message"),
    [
        ({"a": [1], "b": [2]}, None, {}, "edges: a column of sources is missing; name one of a, b as"),
        (E, None, {"source": "from"}, "edges: column 'from' is missing; name one of source, target"),
        (E, None, {"weights": "w"}, "columns must be among source, target, weight, .* got weights"),
        ({name: [] for name in E}, None, {}, "edges must have rows, it has none"),
        ({**E, "weight": [1, np.nan, 3]}, None, {}, "column 'weight', row 2: .*nan.* is no finite number"),
        ({**E, "weight": ["1", "2", "x"]}, None, {}, "column 'weight', row 3: 'x' is no finite number"),
        ({**E, "source": [1, None, 2]}, None, {}, "edges, column 'source', row 2: the id is missing"),
        ({**E, "source": [1, 2, 1e17]}, None, {}, "edges, column 'source', row 3: .*1e.17.* is no exact id"),
        (E, {"id": [1, 2]}, {}, "edges, column 'source', row 3: .*3.* is no id of a neuron in neurons"),
        (E, {"id": [1, 2, 3, 2]}, {}, "neurons: id 2 of row 2 occurs in several rows"),
        (E, {"name": ["a", "b", "c"]}, {}, "neurons: a column of ids is missing; name one of name as id="),
        (E, {"id": [1, 2, 3]}, {"id": "key"}, "neurons: column 'key' is missing; name one of id as id="),
        ({**E, "sign": [1, 0, 1]}, None, {}, "edges, column 'sign', row 2: .*0.* must be a sign"),
        ({**E, "weight": [-1, 1, 1]}, None, {"sign": "sign"}, "sign must be None: the weights of edges"),
        ({**E, "delay": [1, 300, 1]}, None, {}, "delays must be whole numbers of .* got 300"),
        (E, None, {"weight": float("inf")}, "weight must be finite, got inf"),
        (E, None, {"duplicates": "sum"}, 'duplicates must be "add" or "keep", got \'sum\''),
        ([1, 2], None, {}, "edges must be a DataFrame or a dictionary of arrays, got list"),
        (
            {"source": [1], "target": [2], "nt": ["acid"]}, None, {},
            "edges, column 'nt', row 1: 'acid' is no transmitter of ach",
        ),
        (
            {"pre_index": [0, 4], "post_index": [1, 1]}, {"id": [7, 8, 9]}, {"sign": 1},
            r"edges, column 'pre_index', row 2: .*4.* must be an index in \[0, 3\)",
        ),
        ({"pre": [0], "post_index": [1]}, None, {}, "name two columns of ids, or two of indices"),
    ],
)  # fmt: skip
def test_mistakes_name_table_column_and_row(edges, neurons, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        hb.connect.from_table(edges, neurons, **options)


def test_neurons_are_selected_by_id_and_column():
    table = pd.DataFrame({"kind": ["PN", "KC", "KC"], "side": ["L", "L", "R"], "code": ["a[1]", "a1", "b?"]})
    neurons = hb.connect.Neurons(np.array([7, 8, 9]), table)
    assert neurons.select("8", 7).tolist() == [0, 1]
    assert neurons.select(kind="KC", side="L").tolist() == [1]
    assert neurons.select(kind=["PN", "K*"]).tolist() == [0, 1, 2]
    assert neurons.select(code="a[1]").tolist() == [0]
    assert neurons.select(code="b?").tolist() == [2]
    texts = hb.connect.Neurons(np.array(["7", "x"], dtype=object))
    assert texts.select(7, "x").tolist() == [0, 1]
    for arguments, columns, message in (
        ([6], {}, "6 is no id of a neuron; ids are .*7"),
        (["x"], {}, "'x' is no id of a neuron"),
        ([], {}, "no neuron is selected"),
        ([], {"kind": "LN"}, "no neuron has kind=LN; frequent values are KC, PN"),
        ([], {"type": "LN"}, "'type' is no column of the table of neurons, which has kind, side, code"),
        ([], {"kind": "PN", "side": "R"}, "no neuron is selected by kind=PN, side=R"),
    ):
        with pytest.raises(ValueError, match=message):
            neurons.select(*arguments, **columns)
    with pytest.raises(ValueError, match="no table"):
        texts.select(kind="LN")
