/// The GGUF file format: gguf_reader and gguf_writer.
///
/// Everything a file says is checked before it is used (gguf_contents.hpp lists what is refused), and a file is
/// replaced as a whole or not at all (atomic_file.hpp). Format:
/// https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <sluice/io/gguf_reader.hpp>
#include <sluice/io/gguf_writer.hpp>
