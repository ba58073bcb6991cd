# shellcheck shell=bash
# Sets the compiler's flags for many devices: `. launch/xla_flags.sh tpu` or `. launch/xla_flags.sh gpu`.
#
# All of them are about doing collectives (gathering weights, summing gradients) while something else is computed. The
# other scripts here read this file, and nothing else sets any. A flag that this version of XLA does not know stops the
# program at its start: leave it out then. What is in the environment already counts for more.

tpu_flags=(
    # Gathers of weights (fsdp) are begun before they are needed, and waited for when they are.
    --xla_enable_async_all_gather=true
    --xla_tpu_enable_async_collective_fusion=true
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    # One computation may hide several steps of a collective, not only one.
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    # The core computes on while it feeds the network.
    --xla_tpu_overlap_compute_collective_tc=true
    # Sums of gradients over `data`, between slices above all, go on during the rest of the backward pass.
    --xla_tpu_enable_data_parallel_all_reduce_opt=true
    --xla_tpu_data_parallel_opt_different_sized_ops=true
)

gpu_flags=(
    # Orders operations such that collectives run while something else is computed.
    --xla_gpu_enable_latency_hiding_scheduler=true
    # Collectives go first where both wait for the GPU.
    --xla_gpu_enable_highest_priority_async_stream=true
    # Within the loop over layers, what the next one needs is gathered during this one, and what the last one gave is
    # summed during it.
    --xla_gpu_enable_pipelined_all_gather=true
    --xla_gpu_enable_pipelined_reduce_scatter=true
    --xla_gpu_enable_pipelined_all_reduce=true
    # Small ones are joined to a few large ones of so many bytes.
    --xla_gpu_all_gather_combine_threshold_bytes=134217728
    --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
    --xla_gpu_all_reduce_combine_threshold_bytes=134217728
)

case "${1:-}" in
tpu) export LIBTPU_INIT_ARGS="${tpu_flags[*]} ${LIBTPU_INIT_ARGS:-}" ;;
gpu) export XLA_FLAGS="${gpu_flags[*]} ${XLA_FLAGS:-}" ;;
*) echo "xla_flags.sh: say which, tpu or gpu, got '${1:-}'" >&2 && return 2 ;;
esac
