#ifndef SLUICE_EXAMPLES_LLAMA_OPTIONS_H_
#define SLUICE_EXAMPLES_LLAMA_OPTIONS_H_
// What the command line says, and what of it the backend is told.
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "sluice/runtime/lab/facts_file.h"

SLUICE_BEGIN_NAMESPACE
namespace llama {
struct Options {
  std::string model, tokens, libs = LLAMA_LIBS;
  std::vector<std::string> facts_given;
  lab::FactChoice facts = {.count = 16, .wording = {}};
  int context = 16384, documents = 2, threads = 2, poll = 50, ubatch = 512, decode = 32, skip = 0;
  bool spaces = false, auto_flash = false;
  // Of the comparison.
  std::string backend = SLUICE_BACKEND, attention = "dense", decode_attention, counters;
  int repeats = 7, decode_min = -1;
  // Of the table over contexts.
  std::vector<int64_t> contexts;
  bool overhead = false, steps_only = false;
  uint64_t seed = 1;
  // Of one process of the comparison.
  bool child = false, quality = false;
};

inline std::string BackendConfig(const Options& o) {
  std::string text = absl::StrCat("attention = ", o.attention, "\n");
  if (!o.decode_attention.empty()) absl::StrAppend(&text, "decode = ", o.decode_attention, "\n");
  absl::StrAppend(&text, "decode_min_keys = ", o.decode_min, "\n");
  if (!o.counters.empty()) absl::StrAppend(&text, "counters = ", o.counters, "\n");
  return text;
}

// Both sides of a comparison over its pairs, and what each pair says of them.
struct Pairs {
  std::vector<double> plain, routed, compared;
  void Add(double a, double b, double says) {
    plain.push_back(a);
    routed.push_back(b);
    compared.push_back(says);
  }
  // How many times as fast the second is.
  void AddTimes(double a, double b) { Add(a, b, a / b); }
};

// What the backend is told, in a file that goes with this object.
class ConfigFile {
 public:
  explicit ConfigFile(const std::string& text)
      : path_(absl::StrCat("/tmp/sluice-ggml-", getpid(), ".conf")) {
    std::ofstream f(path_);
    f << text;
  }
  ~ConfigFile() { unlink(path_.c_str()); }
  ConfigFile(const ConfigFile&) = delete;
  ConfigFile& operator=(const ConfigFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};
}  // namespace llama
SLUICE_END_NAMESPACE
#endif  // SLUICE_EXAMPLES_LLAMA_OPTIONS_H_
