# Sourced by .ci/run and .ci/long: announces their steps, runs their tests and
# counts them.

# The models of loom have a directory of their own: in the common one, their
# flags would have every dependency built anew, and again for the next build.
readonly loom_directory=target/loom

passed=0
failed=0

step() {
    printf '== %s\n' "$*"
}

# Announces a command as it is typed and runs it.
run() {
    step "$*"
    "$@" </dev/null
}

# Runs a command that tests, and counts. Only its output, which is shown and
# kept for that, says how many tests have passed. No test at all is a failure.
run_tests() {
    local log status=0 its_passed its_failed
    log=$(mktemp)
    run "$@" 2>&1 | tee "$log" || status=1
    read -r its_passed its_failed < <(
        { grep -aoE 'test result: .* [0-9]+ passed; [0-9]+ failed' "$log" || true; } |
            awk '{ passed += $(NF - 3); failed += $(NF - 1) }
                END { print passed + 0, failed + 0 }'
    )
    rm "$log"
    count "$status" "$its_passed" "$its_failed"
}

# Adds to the counts what a command had, which ended with this status.
count() {
    local status=$1 its_passed=$2 its_failed=$3
    if ((its_failed == 0 && (status != 0 || its_passed == 0))); then
        its_failed=1
    fi
    passed=$((passed + its_passed))
    failed=$((failed + its_failed))
}

# Runs the models of src/io/loom/models.rs, with so many preemptions at most.
run_models() {
    run_tests env CARGO_TARGET_DIR="$loom_directory" RUSTFLAGS='--cfg loom' \
        LOOM_MAX_PREEMPTIONS="$1" cargo test --locked --release --lib models
}

# Prints the closing line.
sum_up() {
    printf '%d passed, %d failed\n' "$passed" "$failed"
    ((failed == 0))
}
