"""What vmr-ray's figures are measured with. The files here are commands; the folders are their parts.

    python -m benchmarks.accuracy      how accurate the network is, and what each of its parts is worth
    python -m benchmarks.ingest        how fast videos become features
    python -m benchmarks.serve         how fast the service answers, and what overload and failures cost
    python -m benchmarks.scaling       what an archive of any size costs: nodes, hours, bytes, dollars
    python -m benchmarks.autoscaling   how nodes come and go for a queue of videos
    python -m benchmarks.slideshows    captioned photos -> annotated videos to train and measure with

Run them in the root of a checkout. Each prints its baseline in the same run, and takes --help.
"""
