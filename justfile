# Tasks of replvfs. `just --list` shows them.

default: test

# All tests but the long ones
test *args:
    cargo test --workspace --locked {{ args }}

# All tests, with the long ones
test-long *args:
    REPLVFS_LONG_TESTS=1 cargo test --workspace --locked {{ args }}

# Kills writers for so many rounds: what was reported must be in the replica
kill rounds="500" seed="3":
    REPLVFS_KILL_ROUNDS={{ rounds }} REPLVFS_KILL_SEED={{ seed }} cargo test -p replvfs-tests --locked --test kill -- --nocapture

# Kills writers beside a store that fails, for so many seconds: then the replica must be the database
soak seconds="1800" seed="1":
    REPLVFS_SOAK_SECONDS={{ seconds }} REPLVFS_SOAK_SEED={{ seed }} cargo test -p replvfs-tests --locked --test soak -- --nocapture

# Takes the power away so many times on each disk: the replica must come to what SQLite recovers
power points="600" seed="1":
    REPLVFS_POWER_POINTS={{ points }} REPLVFS_POWER_SEED={{ seed }} cargo test -p replvfs-tests --locked --test power_loss -- --nocapture

# Memory and threads of many databases, and of large ones
scale databases="100,400,1000" mebibytes="256,1024,4096":
    REPLVFS_SCALE_DATABASES={{ databases }} REPLVFS_SCALE_MEBIBYTES={{ mebibytes }} cargo test -p replvfs-tests --locked --test scale -- --nocapture

# SQLite's own test suite through replvfs: `ci`, `all` (hours), or `run --set files`, `run --script 'wal*.test'`; see tests/sqlite/README.md
sqlite-suite *args="all":
    tests/sqlite/suite.sh {{ args }}

# Formatting and lints, as CI has them
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Links between the Markdown files
links:
    python3 tests/links.py

# Formats everything
fmt:
    cargo fmt --all
    cargo fmt --manifest-path fuzz/Cargo.toml

# The API documentation
doc *args:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked {{ args }}

# replvfs, Litestream and plain SQLite side by side: all of it, or PARTS, `--rounds N`, `--short`; see tests/benches/beside_litestream/README.md
bench *args:
    tests/benches/beside_litestream/prepare.sh target/litestream
    cargo build --release --locked -p replvfs-cli
    cargo bench --locked --bench beside_litestream -- {{ args }}

# The plots of what `just bench` has measured last
bench-plots:
    target/litestream/bin/python tests/benches/beside_litestream/plot.py target/beside_litestream.json tests/benches/beside_litestream

# What replication costs a writer
bench-overhead *args:
    cargo bench --bench write_overhead {{ args }}

# What replicating costs: requests and their price, and many databases in one process
cost *args:
    cargo bench --bench cost -- {{ args }}

# What a restore takes beside a copy, and its memory
bench-restore *args:
    cargo bench --bench restore {{ args }}

# What reading a replica takes that is 20 ms away; see tests/benches/remote_reads/README.md
bench-remote *args:
    cargo bench --bench remote_reads -- {{ args }}

# The example that shows the whole way
quickstart *args:
    cargo run --release --example quickstart -- {{ args }}

# The example that reads a replica while it is written
dashboard *args:
    cargo run --release --example dashboard -- {{ args }}

# libreplvfs.so in target/release
extension:
    cargo build --release --locked -p replvfs-extension

# The C library below the folder `prefix`; with other features: `just c-library build/c --no-default-features`
c-library prefix *args:
    replicator/packaging/c-library.sh {{ prefix }} {{ args }}

# One script in every host that there is, and the examples
hosts: extension
    cargo build --release --locked -p replvfs-cli
    cargo build --locked --example host
    cargo build --locked --manifest-path examples/sqlx/Cargo.toml --target-dir target/sqlx --bins --example host
    tests/hosts/prepare.sh target/hosts
    tests/hosts/table.py target/release/libreplvfs.so target/release/replvfs --rust target/debug/examples --sqlx target/sqlx/debug/examples
    tests/hosts/examples.sh target/release/libreplvfs.so target/release/replvfs target/sqlx/debug/notes

# Runs what is in fuzz/corpus through the fuzz targets
corpus *args:
    cargo test --manifest-path fuzz/Cargo.toml --no-default-features --locked --target-dir target {{ args }}

# Fuzzes all targets, or those that are named, for so many seconds each, two beside each other; see fuzz/README.md
fuzz seconds="60" *targets:
    fuzz/run.sh {{ seconds }} {{ targets }}

# Every interleaving of the threads that meet in the log and at the pin
loom *args:
    RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release --locked -p replvfs-vfs --lib loom_ -- {{ args }}

# The border to C and all else that runs without C under Miri (needs nightly with miri)
miri *args:
    CFLAGS=-O0 MIRIFLAGS="-Zmiri-disable-isolation" CARGO_TARGET_DIR=target/miri cargo +nightly miri test --locked -p replvfs-vfs --lib -- --skip capture::continuity {{ args }}

# The tests whose threads meet, or `just tsan -p replvfs-tests --test fork`, under ThreadSanitizer (needs nightly with rust-src)
tsan *args:
    tests/sanitizers/run.sh thread {{ args }}

# The same under AddressSanitizer
asan *args:
    tests/sanitizers/run.sh address {{ args }}

# SQLite's shell with the extension under valgrind; the C examples are in tests/hosts/c.sh
valgrind: extension
    tests/sanitizers/valgrind.sh target/release/libreplvfs.so

# Licences, advisories, sources (needs cargo-deny)
deny:
    cargo deny --workspace --all-features check

# Everything that CI runs
ci:
    .ci/run
