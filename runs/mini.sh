#!/usr/bin/env bash
# Mini from nothing: every network of VideoGen, in the order in which each needs the ones before (DESIGN.md section 1).
# Stop it whenever you like (Ctrl-C) and start it again: each line goes on where it was, or says that it is done.
#
#   bash runs/mini.sh [FOLDER [OPTION ...]]        default: runs/mini
#
# Options go to every training: `--set loop.precision=bfloat16` is faster where the processor multiplies in it.
# docs/training.md has the measured minutes of each step. More processes: put `torchrun --nproc-per-node N -m` before videogen.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/mini}
options=("${@:2}")
videogen=${VIDEOGEN:-.venv/bin/videogen}
# glibc gives freed memory back at once and has it cleared again for the next step; it need not, and large pages are faster.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184}

step() { "$videogen" train "mini/$1" -o "$out/$1" ${options[@]+"${options[@]}"}; }
assemble() { "$videogen" assemble --from "$out" -o "$out/pipeline"; } # what is trained so far; later steps read it there

# What the paper takes ready-made (Stable Diffusion and CLIP), made here at mini's size
[ -d "$out/tokenizer" ] || "$videogen" prepare tokenizer -o "$out/tokenizer"
step text_encoder
step autoencoder
assemble
step text_to_image_small
step text_to_image_shapes
step text_to_image_beside
step text_to_image_near
step text_to_image_far
step text_to_image_whole
step text_to_image_drawing
step text_to_image_wide
step text_to_image_details
step text_to_image

# Section 3.2 and 3.5: the cascade, each network started from the one before
step base_start
step base_left_right
step base_motions
step base_speeds
step base_scenes
step base_sixteen
step base_drawing
step base_moving
step base
step super_resolution_1_drawing
step super_resolution_1
step super_resolution_2_start
step super_resolution_2_below
step super_resolution_2

# Section 3.3: temporal super-resolution
step latent_flow_start
step latent_flow
step refiner

# Section 3.4: the video decoder
step video_decoder

# No part of the pipeline: the judge of in-domain IS and FVD (docs/evaluation.md)
step video_classifier

assemble
echo "mini is in $out/pipeline: videogen generate \"a red ball bounces over a meadow at sunset\" --model $out/pipeline -o ball.mp4"
