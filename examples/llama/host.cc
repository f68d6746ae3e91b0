#include "sluice/examples/llama/host.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "sluice/api/check.h"

SLUICE_BEGIN_NAMESPACE
namespace llama {
namespace {
void* CpuFunction(const char* name) {
  const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), name);
}
}  // namespace

Context::Context(llama_context* context, int ubatch)
    : context_(context), ubatch_(ubatch), batch_(llama_batch_init(ubatch, 0, 1)) {}
Context::~Context() {
  llama_batch_free(batch_);
  llama_free(context_);
}

absl::Status Context::Pass(absl::Span<const int32_t> tokens, int64_t position, Logits wanted) {
  batch_.n_tokens = static_cast<int32_t>(tokens.size());
  for (int32_t i = 0; i < batch_.n_tokens; ++i) {
    const bool last = i + 1 == batch_.n_tokens;
    batch_.token[i] = tokens[i];
    batch_.pos[i] = static_cast<llama_pos>(position + i);
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = 0;
    batch_.logits[i] = wanted == Logits::kAll || (wanted == Logits::kLast && last) ? 1 : 0;
  }
  if (llama_decode(context_, batch_) != 0)
    return absl::InternalError(absl::StrCat("llama_decode failed at token ", position));
  llama_synchronize(context_);
  return absl::OkStatus();
}
absl::Status Context::Prefill(absl::Span<const int32_t> tokens, int64_t position) {
  for (size_t at = 0; at < tokens.size(); at += ubatch_) {
    const auto pass = tokens.subspan(at, ubatch_);
    const bool last = at + pass.size() == tokens.size();
    SLUICE_RETURN_IF_ERROR(
        Pass(pass, position + static_cast<int64_t>(at), last ? Logits::kLast : Logits::kNone));
  }
  return absl::OkStatus();
}
void Context::Clear() { llama_memory_clear(llama_get_memory(context_), true); }
absl::Status Context::CopyFrom(const Context& other) {
  std::vector<uint8_t> bytes(llama_state_seq_get_size(other.context_, 0));
  const size_t read = llama_state_seq_get_data(other.context_, bytes.data(), bytes.size(), 0);
  Clear();
  if (read > 0 && llama_state_seq_set_data(context_, bytes.data(), read, 0) > 0)
    return absl::OkStatus();
  return absl::UnimplementedError("llama.cpp does not copy the cache of this model");
}
absl::Status Context::Truncate(int64_t position) {
  if (llama_memory_seq_rm(llama_get_memory(context_), 0, static_cast<llama_pos>(position), -1))
    return absl::OkStatus();
  return absl::UnimplementedError(
      "llama.cpp does not take back tokens of this model; give one context at a time");
}

Host::Host(llama_model* model, int threads, int poll) : model_(model), threads_(threads) {
  // As llama.cpp's own programs do. Without threads that stay, ggml starts and joins new ones for
  // every part of a graph, and there are more parts with a second backend.
  if (poll < 0) return;
  using New = ggml_threadpool_t (*)(ggml_threadpool_params*);
  const auto make = reinterpret_cast<New>(CpuFunction("ggml_threadpool_new"));
  if (make == nullptr || CpuFunction("ggml_threadpool_free") == nullptr) return;
  ggml_threadpool_params params = ggml_threadpool_params_default(threads);
  params.poll = static_cast<uint32_t>(poll);
  pool_ = make(&params);
}
Host::~Host() {
  if (pool_ != nullptr) {
    using Free = void (*)(ggml_threadpool_t);
    reinterpret_cast<Free>(CpuFunction("ggml_threadpool_free"))(pool_);
  }
  llama_model_free(model_);
}

absl::StatusOr<std::unique_ptr<Host>> Host::Load(const std::string& path, const std::string& libs,
                                                 int threads, int poll) {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  ggml_backend_load_all_from_path(libs.c_str());
  llama_model* model = llama_model_load_from_file(path.c_str(), llama_model_default_params());
  if (model == nullptr) return absl::InvalidArgumentError(path + ": llama.cpp cannot load it");
  return std::unique_ptr<Host>(new Host(model, threads, poll));
}

absl::StatusOr<std::unique_ptr<Context>> Host::NewContext(const ContextOptions& o) const {
  llama_context_params p = llama_context_default_params();
  p.n_ctx = static_cast<uint32_t>(o.tokens);
  p.n_batch = static_cast<uint32_t>(o.ubatch);
  p.n_ubatch = static_cast<uint32_t>(o.ubatch);
  p.n_threads = threads_;
  p.n_threads_batch = threads_;
  p.flash_attn_type = o.auto_flash ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_ENABLED;
  llama_context* context = llama_init_from_model(model_, p);
  if (context == nullptr)
    return absl::InvalidArgumentError(
        absl::StrCat("llama.cpp cannot make a context of ", o.tokens, " tokens"));
  if (pool_ != nullptr) llama_attach_threadpool(context, pool_, pool_);
  return std::make_unique<Context>(context, o.ubatch);
}
}  // namespace llama
SLUICE_END_NAMESPACE
