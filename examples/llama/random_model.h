#ifndef SLUICE_EXAMPLES_LLAMA_RANDOM_MODEL_H_
#define SLUICE_EXAMPLES_LLAMA_RANDOM_MODEL_H_
// Models of random weights in the shapes of well-known ones, so that speed can be measured without
// a model: what a pass costs does not depend on what the weights are.
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace llama {
// All are written as the architecture "llama", without what else their namesakes have (norms of
// heads, tables of rotations).
struct RandomShape {
  const char* name;
  const char* of;  // whose widths these are
  int64_t layers = 0, width = 0, heads = 0, kv_heads = 0, head = 0, ffn = 0, vocabulary = 0;
  bool tied = true;  // the output matrix is the embedding
};
struct RandomModel {
  RandomShape shape;
  const char* weights = "";  // type of every matrix
};

// "random:1B-q8_0" and the like; anything else is a file.
bool IsRandomModel(absl::string_view model);
// InvalidArgument for a shape or type that is not there, with a list of those that are.
absl::StatusOr<RandomModel> ParseRandomModel(absl::string_view model);
// Widths and sizes, in words.
std::string Describe(const RandomModel& model);
// Of the whole file.
int64_t FileBytes(const RandomModel& model);

// Writes the GGUF file to a file descriptor, a few MB at a time. The same seed gives the same
// bytes. Elements are uniform, of a deviation that keeps the size of what they are multiplied with.
// `progress`: bytes written so far.
absl::Status WriteRandomModel(const RandomModel& model, uint64_t seed, int fd,
                              const std::function<void(int64_t)>& progress = {});

// A file without a name: it goes with the process, whichever way that ends.
class TemporaryFile {
 public:
  // In TMPDIR or /tmp. ResourceExhausted where fewer than `bytes` are free, with both.
  static absl::StatusOr<TemporaryFile> Create(int64_t bytes, const std::string& what);
  ~TemporaryFile();
  TemporaryFile(TemporaryFile&& other) noexcept;
  TemporaryFile& operator=(TemporaryFile&&) = delete;
  int fd() const { return fd_; }
  // Opens it in this process.
  std::string path() const;

 private:
  explicit TemporaryFile(int fd) : fd_(fd) {}
  int fd_;
};
}  // namespace llama
SLUICE_END_NAMESPACE
#endif  // SLUICE_EXAMPLES_LLAMA_RANDOM_MODEL_H_
