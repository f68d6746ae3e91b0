#ifndef SLUICE_EXAMPLES_LLAMA_HOST_H_
#define SLUICE_EXAMPLES_LLAMA_HOST_H_
// A GGUF model in an unmodified llama.cpp, and passes of tokens through it.
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "llama.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace llama {
struct ContextOptions {
  int64_t tokens = 0;  // that it holds
  int ubatch = 512;    // tokens of a pass, at most
  bool auto_flash = false;
};
enum class Logits : uint8_t { kNone, kLast, kAll };

// One sequence. Not for concurrent use.
class Context {
 public:
  Context(llama_context* context, int ubatch);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // At most `ubatch` tokens, which stand from `position` on; done when it returns.
  absl::Status Pass(absl::Span<const int32_t> tokens, int64_t position, Logits wanted);
  // Any number of tokens, in passes.
  absl::Status Prefill(absl::Span<const int32_t> tokens, int64_t position);
  // Of the i-th token of the last pass; valid until the next.
  const float* LogitsOf(int32_t i) const { return llama_get_logits_ith(context_, i); }
  void Clear();
  // Everything that another context of the same model has read, in place of what this one has.
  absl::Status CopyFrom(const Context& other);
  // Forgets what stands at `position` and after it.
  absl::Status Truncate(int64_t position);

 private:
  llama_context* const context_;
  const int ubatch_;
  llama_batch batch_;
};

// Models and contexts without names for threads and libraries; contexts go before it does.
class Host {
 public:
  // `libs`: the folder of llama.cpp's shared libraries. Loads GGML_BACKEND_PATH as well.
  static absl::StatusOr<std::unique_ptr<Host>> Load(const std::string& model,
                                                    const std::string& libs, int threads, int poll);
  ~Host();
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  int vocabulary() const { return llama_vocab_n_tokens(llama_model_get_vocab(model_)); }
  int layers() const { return llama_model_n_layer(model_); }
  // With every backend that is loaded by now.
  absl::StatusOr<std::unique_ptr<Context>> NewContext(const ContextOptions& options) const;

 private:
  Host(llama_model* model, int threads, int poll);

  llama_model* const model_;
  const int threads_;
  ggml_threadpool_t pool_ = nullptr;
};
}  // namespace llama
SLUICE_END_NAMESPACE
#endif  // SLUICE_EXAMPLES_LLAMA_HOST_H_
