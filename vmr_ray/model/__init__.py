"""The network, its checkpoints, and what predicts moments with it. No Ray, no training.

Letters of tensor shapes, here and in `training/`:

    B  videos
    Q  pairs of a query and a video; of a tensor that knows no video, queries
    A  all queries of a training batch, of which some are drawn for pairs
    T  frames of a video or window, padded to the longest
    L  tokens of a query, padded to the longest
    S  true spans of a pair, padded; in `search/`, segments of a window
    K  candidate spans of a pair
    N  cells of a pyramid, all levels together
    M  rows of any memory that an attention reads: frames or tokens
    H  attention heads
    D  width: `dim` of the towers, `fusion_dim` after fusion; `frame_dim` and `token_dim` are the inputs'

Times are seconds as floats, spans are half-open `[start, end)`. Masks are True where an entry is real, and
real entries come first. A comment `# [B, T, D]` gives the shape of the value that its line assigns.
"""
