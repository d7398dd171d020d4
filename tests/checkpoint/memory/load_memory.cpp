// Writes a layer of OLMoE's size (64 experts of 2048 x 1024 x 3, 0.8 GB in bfloat16), loads it as bfloat16 and as float, and
// fails if the process ever held more than the packed weights and a tenth. Pages of the mapped file are not counted: they are
// the kernel's cache.
//
//   sluice_load_memory FOLDER     the file is removed at the end
#include <sluice/checkpoint/load_layer.hpp>
#include <sluice/io/safetensors_writer.hpp>

#ifdef SLUICE_TEST_WITH_OPENMP
#include <sluice/exec/openmp.hpp>
#endif

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

namespace {

using namespace sluice;

/// Anonymous memory of this process in bytes.
double anonymous_bytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word)
    if (word == "RssAnon:") {
      double kilobytes = 0;
      status >> kilobytes;
      return kilobytes * 1024;
    }
  return -1;
}

/// The largest amount since it was made, looked at every millisecond.
class peak_watch {
public:
  peak_watch() : start_(anonymous_bytes()), thread_([this] { watch(); }) {}
  ~peak_watch() { stop(); }

  double growth() {
    stop();
    return peak_ - start_;
  }

private:
  void watch() {
    while (!done_) {
      peak_ = std::max(peak_, anonymous_bytes());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    peak_ = std::max(peak_, anonymous_bytes());
  }
  void stop() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
  }

  double start_;
  double peak_ = 0;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

model_config olmoe() {
  model_config c;
  c.family = model_family::olmoe;
  c.inputs = 2048, c.hidden = 1024, c.experts = 64, c.top_k = 8;
  c.layers = 1;
  c.moe_layers = {0};
  return c;
}

/// Numbers of one tensor, made up while they are written.
void made_up(const void*, std::size_t first, std::span<std::byte> bytes) {
  for (std::size_t i = 0; i < bytes.size(); i += 2) {
    const auto n = static_cast<std::uint32_t>(first + i / 2) * 2654435761u;
    bytes[i] = static_cast<std::byte>(n >> 24);
    bytes[i + 1] = static_cast<std::byte>((n & 0x8000u) ? 0xbd : 0x3d);
  }
}

void write(const std::filesystem::path& path, const model_config& c) {
  const tensor_names names(c, {.layer = 0});
  safetensors_writer file;
  const auto add = [&](const tensor_place& place) {
    file.add(place.tensor, place.shape, data_type::bf16, safetensors_writer::source{nullptr, made_up});
  };
  add(*names.place_of("router.gate.weight", c.experts, c.inputs));
  for (index_t e = 0; e < c.experts; ++e)
    for (const auto part : names.layout().parts()) add(names.layout().place(names.prefix(), e, part, names.extent()));
  file.save(path);
}

template <typename Layer>
bool check(const checkpoint_model& model, const char* name) {
  layer_load_options options;
#ifdef SLUICE_TEST_WITH_OPENMP
  openmp_executor executor;
  options.executor = executor;
#endif
  peak_watch watch;
  const auto begin = std::chrono::steady_clock::now();
  const auto layer = load_layer<Layer>(model, {.layer = 0}, options);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double peak = watch.growth();
  double packed = 0;
  for_each_parameter(layer, [&](const std::string&, const auto& p) { packed += static_cast<double>(p.value().size_bytes()); });
  std::printf("%s: packed %.1f MB, peak %.1f MB, %.3f of it; %.2f s, %.2f GB/s of the file\n", name, packed / 1e6,
              peak / 1e6, peak / packed, seconds, static_cast<double>(model.files().bytes()) / seconds / 1e9);
  return peak >= 0.9 * packed && peak <= 1.1 * packed;  // less would mean that the watch saw nothing
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::filesystem::path path = std::filesystem::path(argv[1]) / "olmoe_layer.safetensors";
  bool fits = true;
  try {
    write(path, olmoe());
    const checkpoint_model model(path, olmoe());
    fits = check<olmoe_layer<float, bfloat16_storage>>(model, "bfloat16") && fits;
    fits = check<olmoe_layer<float>>(model, "float") && fits;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    fits = false;
  }
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  return fits ? 0 : 1;
}
