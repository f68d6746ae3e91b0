// Measures an unmodified llama.cpp with and without the Sluice backend: perplexity, planted facts,
// prefill and decode. Every measurement runs in a process of its own, plain and routed in turn,
// since backends are loaded once a process.
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ggml-backend.h"
#include "llama.h"
#include "sluice/api/check.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/facts.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/lab/facts_file.h"
#include "sluice/runtime/text/token_file.h"
#include "sluice/runtime/weights/gguf.h"

namespace {
using nlohmann::json;
using sluice::host::FactPrompt;
using sluice::lab::Median;
struct Options {
  std::string model, tokens, libs = LLAMA_LIBS;
  std::vector<std::string> facts_given;
  sluice::lab::FactChoice facts = {.count = 16, .wording = {}};
  int context = 16384, documents = 2, threads = 2, ubatch = 512, decode = 32, skip = 0;
  bool spaces = false, auto_flash = false;
  // Of the comparison.
  std::string backend = SLUICE_BACKEND, attention = "dense", decode_attention, counters;
  int repeats = 7, decode_min = -1;
  // Of one of its processes.
  bool child = false, quality = false;
};
double Seconds(std::chrono::steady_clock::time_point from) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
}

// One process: what llama.cpp makes of the documents, as one line of JSON.
class Measurement {
 public:
  explicit Measurement(const Options& o) : o_(o) {}
  ~Measurement() {
    if (ctx_ != nullptr) {
      llama_batch_free(batch_);
      llama_free(ctx_);
    }
    if (pool_ != nullptr) {
      using Free = void (*)(ggml_threadpool_t);
      reinterpret_cast<Free>(CpuFunction("ggml_threadpool_free"))(pool_);
    }
    if (model_ != nullptr) llama_model_free(model_);
  }
  absl::Status Run() {
    SLUICE_RETURN_IF_ERROR(Open());
    std::vector<double> prefill, decode;
    for (int d = 0; d < o_.documents; ++d) {
      const auto text = held_.begin() + int64_t{d} * o_.context;
      const FactPrompt p =
          sluice::host::PlantFacts(*tokenizer_, {text, text + o_.context}, o_.context,
                                   o_.facts.count, static_cast<uint64_t>(d) + 1, o_.facts.wording);
      llama_memory_clear(llama_get_memory(ctx_), true);
      const auto from = std::chrono::steady_clock::now();
      SLUICE_RETURN_IF_ERROR(Prefill(p));
      prefill.push_back(Seconds(from));
      const auto steps = std::chrono::steady_clock::now();
      SLUICE_RETURN_IF_ERROR(Decode(p));
      decode.push_back(Seconds(steps) / std::max(1, o_.decode));
    }
    json j = {{"prefill_s", Median(prefill)}, {"decode_ms", 1e3 * Median(decode)}};
    if (o_.quality) {
      j["perplexity"] = std::exp(nll_ / static_cast<double>(counted_));
      j["facts"] = static_cast<double>(right_) / static_cast<double>(std::max<int64_t>(1, asked_));
    }
    std::printf("%s\n", j.dump().c_str());
    return absl::OkStatus();
  }

 private:
  absl::Status Open() {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
        },
        nullptr);
    ggml_backend_load_all_from_path(o_.libs.c_str());
    SLUICE_RETURN_IF_ERROR(ReadInputs());
    model_ = llama_model_load_from_file(o_.model.c_str(), llama_model_default_params());
    if (model_ == nullptr)
      return absl::InvalidArgumentError(o_.model + ": llama.cpp cannot load it");
    llama_context_params cp = llama_context_default_params();
    cp.n_ctx = static_cast<uint32_t>(o_.context + 256);
    cp.n_batch = static_cast<uint32_t>(o_.ubatch);
    cp.n_ubatch = static_cast<uint32_t>(o_.ubatch);
    cp.n_threads = o_.threads;
    cp.n_threads_batch = o_.threads;
    cp.flash_attn_type = o_.auto_flash ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_ENABLED;
    ctx_ = llama_init_from_model(model_, cp);
    if (ctx_ == nullptr)
      return absl::InvalidArgumentError(
          absl::StrCat("llama.cpp cannot make a context of ", o_.context));
    AttachThreads();
    vocab_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
    batch_ = llama_batch_init(o_.ubatch, 0, 1);
    return absl::OkStatus();
  }
  static void* CpuFunction(const char* name) {
    const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), name);
  }
  // As llama.cpp's own programs do. Without threads that stay, ggml starts and joins new ones for
  // every part of a graph, and there are more parts with a second backend.
  void AttachThreads() {
    using New = ggml_threadpool_t (*)(ggml_threadpool_params*);
    const auto make = reinterpret_cast<New>(CpuFunction("ggml_threadpool_new"));
    if (make == nullptr || CpuFunction("ggml_threadpool_free") == nullptr) return;
    ggml_threadpool_params params = ggml_threadpool_params_default(o_.threads);
    pool_ = make(&params);
    if (pool_ != nullptr) llama_attach_threadpool(ctx_, pool_, pool_);
  }
  absl::Status ReadInputs() {
    SLUICE_ASSIGN_OR_RETURN(const sluice::Gguf gguf, sluice::Gguf::Open(o_.model));
    auto tokenizer = sluice::Tokenizer::Load(gguf);
    auto held = sluice::ReadTokens(o_.tokens, o_.skip, int64_t{o_.context} * o_.documents);
    if (!tokenizer.ok() || !held.ok())
      return absl::InvalidArgumentError("tokenizer or tokens cannot be read");
    if (static_cast<int64_t>(held->size()) < int64_t{o_.context} * o_.documents)
      return absl::InvalidArgumentError(absl::StrCat(o_.tokens, ": ", held->size(),
                                                     " tokens are fewer than ", o_.documents,
                                                     " documents of ", o_.context));
    tokenizer_.emplace(*std::move(tokenizer));
    held_ = *std::move(held);
    return absl::OkStatus();
  }

  void SetToken(int32_t i, int32_t token, int64_t position, bool logits) {
    batch_.token[i] = token;
    batch_.pos[i] = static_cast<llama_pos>(position);
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = 0;
    batch_.logits[i] = logits ? 1 : 0;
  }
  absl::Status Prefill(const FactPrompt& p) {
    const auto n = static_cast<int64_t>(p.tokens.size());
    for (int64_t at = 0; at < n; at += o_.ubatch) {
      batch_.n_tokens = static_cast<int32_t>(std::min<int64_t>(o_.ubatch, n - at));
      for (int32_t i = 0; i < batch_.n_tokens; ++i)
        SetToken(i, p.tokens[at + i], at + i, o_.quality || at + i + 1 == n);
      if (llama_decode(ctx_, batch_) != 0)
        return absl::InternalError(absl::StrCat("llama_decode failed at token ", at));
      for (int32_t i = 0; o_.quality && i < batch_.n_tokens; ++i)
        Judge(p, static_cast<size_t>(at + i + 1), llama_get_logits_ith(ctx_, i));
    }
    return absl::OkStatus();
  }
  // What the logits say of the token that follows: planted answers for facts, text for perplexity.
  void Judge(const FactPrompt& p, size_t next, const float* logits) {
    if (next >= p.tokens.size()) return;
    const int32_t want = p.tokens[next];
    if (p.answer[next] != 0) {
      ++asked_;
      right_ += Largest(logits) == want;
    }
    if (p.text[next] == 0) return;
    nll_ += static_cast<double>(sluice::kernels::LogSumExp(logits, vocab_) - logits[want]);
    ++counted_;
  }
  absl::Status Decode(const FactPrompt& p) {
    int32_t token = p.tokens.back();
    batch_.n_tokens = 1;
    for (int s = 0; s < o_.decode; ++s) {
      SetToken(0, token, static_cast<int64_t>(p.tokens.size()) + s, true);
      if (llama_decode(ctx_, batch_) != 0)
        return absl::InternalError(absl::StrCat("llama_decode failed at step ", s));
      token = Largest(llama_get_logits_ith(ctx_, 0));
    }
    return absl::OkStatus();
  }
  int32_t Largest(const float* logits) const {
    return static_cast<int32_t>(std::max_element(logits, logits + vocab_) - logits);
  }

  const Options& o_;
  std::optional<sluice::Tokenizer> tokenizer_;
  std::vector<int32_t> held_;
  llama_model* model_ = nullptr;
  llama_context* ctx_ = nullptr;
  ggml_threadpool_t pool_ = nullptr;
  llama_batch batch_ = {};
  int vocab_ = 0;
  double nll_ = 0;
  int64_t counted_ = 0, right_ = 0, asked_ = 0;
};
int Child(const Options& o) {
  const absl::Status status = Measurement(o).Run();
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}

// Runs this program again as a child, with or without the backend.
absl::StatusOr<json> Run(std::vector<std::string> args, const std::string& backend,
                         const std::string& config) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) return absl::InternalError("pipe failed");
  args.insert(args.begin(), "llama_compare");
  args.push_back("--child");
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(pipe_ends[1], 1);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    if (backend.empty()) {
      unsetenv("GGML_BACKEND_PATH");
    } else {
      setenv("GGML_BACKEND_PATH", backend.c_str(), 1);
      setenv("SLUICE_GGML_CONFIG", config.c_str(), 1);
    }
    std::vector<char*> argv;
    argv.reserve(args.size() + 1);
    for (std::string& a : args) argv.push_back(a.data());
    argv.push_back(nullptr);
    execv("/proc/self/exe", argv.data());
    _exit(127);
  }
  close(pipe_ends[1]);
  std::string out;
  char buffer[4096];
  for (ssize_t n; (n = read(pipe_ends[0], buffer, sizeof buffer)) > 0;) out.append(buffer, n);
  close(pipe_ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  if (status != 0) return absl::InternalError(absl::StrCat("a run ended with status ", status));
  json j = json::parse(out, nullptr, false);
  if (j.is_discarded()) return absl::InternalError(absl::StrCat("a run said: ", out));
  return j;
}

// What the backend is told, in a file that goes with this object.
class ConfigFile {
 public:
  explicit ConfigFile(const Options& o)
      : path_(absl::StrCat("/tmp/sluice-ggml-", getpid(), ".conf")) {
    std::ofstream f(path_);
    f << "attention = " << o.attention << "\n";
    if (!o.decode_attention.empty()) f << "decode = " << o.decode_attention << "\n";
    f << "decode_min_keys = " << o.decode_min << "\n";
    if (!o.counters.empty()) f << "counters = " << o.counters << "\n";
  }
  ~ConfigFile() { unlink(path_.c_str()); }
  ConfigFile(const ConfigFile&) = delete;
  ConfigFile& operator=(const ConfigFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

absl::Status CompareQuality(const Options& o, std::vector<std::string> args,
                            const std::string& config) {
  args.push_back("--quality");
  const auto plain = Run(args, "", config);
  const auto routed = Run(args, o.backend, config);
  if (!plain.ok()) return plain.status();
  if (!routed.ok()) return routed.status();
  const double plain_perplexity = (*plain)["perplexity"];
  const double plain_facts = (*plain)["facts"];
  const double perplexity = (*routed)["perplexity"];
  const double facts = (*routed)["facts"];
  std::printf(
      "%-10s %12s %8s\n%-10s %12.4f %8.3f\n%-10s %12.4f %8.3f   (perplexity %+.3f %%, facts %+.1f "
      "points)\n",
      "", "perplexity", "facts", "llama.cpp", plain_perplexity, plain_facts, "sluice", perplexity,
      facts, 100 * (perplexity / plain_perplexity - 1), 100 * (facts - plain_facts));
  std::fflush(stdout);
  return absl::OkStatus();
}
absl::Status CompareSpeed(const Options& o, const std::vector<std::string>& args,
                          const std::string& config) {
  struct Times {
    std::vector<double> plain, routed, speed;
    void Add(double a, double b) {
      plain.push_back(a);
      routed.push_back(b);
      speed.push_back(a / b);
    }
  };
  Times prefill, decode;
  for (int r = 0; r < o.repeats; ++r) {
    const auto plain = Run(args, "", config);
    const auto routed = Run(args, o.backend, config);
    if (!plain.ok()) return plain.status();
    if (!routed.ok()) return routed.status();
    prefill.Add((*plain)["prefill_s"], (*routed)["prefill_s"]);
    decode.Add((*plain)["decode_ms"], (*routed)["decode_ms"]);
  }
  if (o.repeats == 0) return absl::OkStatus();
  std::printf(
      "prefill    %.3f s -> %.3f s, %.2fx; decode %.2f ms -> %.2f ms, %.2fx (medians of %d runs of "
      "each in turn)\n",
      Median(prefill.plain), Median(prefill.routed), Median(prefill.speed), Median(decode.plain),
      Median(decode.routed), Median(decode.speed), o.repeats);
  return absl::OkStatus();
}
absl::Status Compare(const Options& o, const std::vector<std::string>& args) {
  const ConfigFile config(o);
  std::printf("%d tokens, %d documents, %d threads, passes of %d\n", o.context, o.documents,
              o.threads, o.ubatch);
  SLUICE_RETURN_IF_ERROR(CompareQuality(o, args, config.path()));
  return CompareSpeed(o, args, config.path());
}

void AddOptions(CLI::App& app, Options& o) {
  app.add_option("--model", o.model, "GGUF file")->capture_default_str();
  app.add_option("--tokens", o.tokens, "held-out token ids: .u16, .u32 (little-endian) or .npy")
      ->capture_default_str();
  app.add_option("--skip", o.skip, "tokens to skip")->capture_default_str();
  app.add_option("--libs", o.libs, "folder of llama.cpp's shared libraries")->capture_default_str();
  app.add_option("--backend", o.backend, "libggml-sluice.so")->capture_default_str();
  app.add_option("--attention", o.attention,
                 "router of prefill (and of decode, unless --decode-attention)")
      ->capture_default_str();
  app.add_option("--decode-attention", o.decode_attention, "router of decode");
  app.add_option("--decode-min-keys", o.decode_min,
                 "steps over fewer keys stay with llama.cpp; -1: where it does not pay")
      ->capture_default_str();
  app.add_option("--counters", o.counters, "file for the backend's counters");
  app.add_option("--context", o.context, "tokens of a document")
      ->capture_default_str()
      ->check(CLI::Range(64, 1 << 20));
  app.add_option("--documents", o.documents, "documents")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--facts", o.facts_given,
                 "facts planted in a document [16]; 0: the text as it is; or a JSON file of their "
                 "wording, or both (`sluice facts --help`)")
      ->type_name("N|FILE")
      ->allow_extra_args(false);
  app.add_flag("--spaces", o.spaces, "plant facts between spaces, as some models learned them");
  app.add_option("--threads", o.threads, "of both")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--ubatch", o.ubatch, "tokens a pass")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  app.add_option("--steps", o.decode, "decode steps after each document")->capture_default_str();
  app.add_option("--repeats", o.repeats, "timed runs of each, in turn; 0: quality only")
      ->capture_default_str();
  app.add_flag("--auto-flash", o.auto_flash,
               "let llama.cpp decide about flash attention (-fa auto)");
  app.add_flag("--quality", o.quality)->group("");
  app.add_flag("--child", o.child)->group("");
}
}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Runs a GGUF model in an unmodified llama.cpp, with its own CPU flash attention and with "
      "Sluice's backend in turn."};
  Options o;
  o.model = sluice::host::ModelsFolder() + "/sluice-mini-q8_0.gguf";
  o.tokens = sluice::host::ModelsFolder() + "/sluice-mini-eval.u16";
  AddOptions(app, o);
  app.footer("Example: llama_compare --context 16384 --attention 'mean_pool:k=32'");
  CLI11_PARSE(app, argc, argv);
  const absl::Status facts = sluice::lab::ReadFactChoice(o.facts_given, 0, o.spaces, o.facts);
  if (!facts.ok()) {
    std::fprintf(stderr, "error: %s\n", std::string(facts.message()).c_str());
    return 1;
  }
  if (o.child) return Child(o);
  const absl::Status status = Compare(o, {argv + 1, argv + argc});
  if (status.ok()) return 0;
  std::fprintf(stderr, "error: %s\n", std::string(status.message()).c_str());
  return 1;
}
