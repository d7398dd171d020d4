/// The safetensors file format: safetensors_reader and safetensors_writer.
///
/// Everything a file says is checked before it is used (safetensors_contents.hpp lists what is refused), and a file is
/// replaced as a whole or not at all (atomic_file.hpp). Format: https://github.com/huggingface/safetensors
#pragma once

#include <sluice/io/safetensors_reader.hpp>
#include <sluice/io/safetensors_writer.hpp>
