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
#include <vector>

#include "absl/strings/str_cat.h"
#include "ggml-backend.h"
#include "llama.h"
#include "sluice/runtime/host/engine.h"
#include "sluice/runtime/host/policy.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/lab/evaluate/statistics.h"
#include "sluice/runtime/weights/gguf.h"

namespace {
using nlohmann::json;
struct Options {
  std::string model, tokens, libs = LLAMA_LIBS, separator = "\n";
  int context = 16384, documents = 2, threads = 2, ubatch = 512, facts = 16, decode = 32, skip = 0;
  bool quality = false, auto_flash = false;
};
double Seconds(std::chrono::steady_clock::time_point from) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
}

// One process: what it finds, as one line of JSON.
int Child(const Options& o) {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  ggml_backend_load_all_from_path(o.libs.c_str());
  auto gguf = sluice::Gguf::Open(o.model);
  if (!gguf.ok())
    return std::fprintf(stderr, "%s\n", std::string(gguf.status().message()).c_str()), 1;
  auto tokenizer = sluice::Tokenizer::Load(*gguf);
  auto held = sluice::ReadTokens(o.tokens, o.skip, int64_t{o.context} * o.documents);
  if (!tokenizer.ok() || !held.ok())
    return std::fprintf(stderr, "tokenizer or tokens cannot be read\n"), 1;
  if (static_cast<int64_t>(held->size()) < int64_t{o.context} * o.documents)
    return std::fprintf(stderr, "%s: %zu tokens are fewer than %d documents of %d\n",
                        o.tokens.c_str(), held->size(), o.documents, o.context),
           1;
  llama_model_params mp = llama_model_default_params();
  llama_model* model = llama_model_load_from_file(o.model.c_str(), mp);
  if (model == nullptr)
    return std::fprintf(stderr, "%s: llama.cpp cannot load it\n", o.model.c_str()), 1;
  llama_context_params cp = llama_context_default_params();
  cp.n_ctx = static_cast<uint32_t>(o.context + 256);
  cp.n_batch = static_cast<uint32_t>(o.ubatch);
  cp.n_ubatch = static_cast<uint32_t>(o.ubatch);
  cp.n_threads = cp.n_threads_batch = o.threads;
  cp.flash_attn_type = o.auto_flash ? LLAMA_FLASH_ATTN_TYPE_AUTO : LLAMA_FLASH_ATTN_TYPE_ENABLED;
  llama_context* ctx = llama_init_from_model(model, cp);
  if (ctx == nullptr)
    return std::fprintf(stderr, "llama.cpp cannot make a context of %d\n", o.context), 1;
  const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
  llama_batch batch = llama_batch_init(o.ubatch, 0, 1);
  double nll = 0;
  int64_t counted = 0, right = 0, asked = 0;
  std::vector<double> prefill, decode;
  for (int d = 0; d < o.documents; ++d) {
    const std::vector<int32_t> text(held->begin() + int64_t{d} * o.context,
                                    held->begin() + int64_t{d + 1} * o.context);
    const sluice::host::FactPrompt p = sluice::host::PlantFacts(
        *tokenizer, text, o.context, o.facts, static_cast<uint64_t>(d) + 1, o.separator);
    const auto n = static_cast<int64_t>(p.tokens.size());
    llama_memory_clear(llama_get_memory(ctx), true);
    const auto from = std::chrono::steady_clock::now();
    for (int64_t at = 0; at < n; at += o.ubatch) {
      batch.n_tokens = static_cast<int32_t>(std::min<int64_t>(o.ubatch, n - at));
      for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const int64_t t = at + i;
        batch.token[i] = p.tokens[t];
        batch.pos[i] = static_cast<llama_pos>(t);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = o.quality ? 1 : t + 1 == n;
      }
      if (llama_decode(ctx, batch) != 0)
        return std::fprintf(stderr, "llama_decode failed at token %lld\n",
                            static_cast<long long>(at)),
               1;
      for (int32_t i = 0; o.quality && i < batch.n_tokens; ++i) {
        const auto next = static_cast<size_t>(at + i + 1);
        if (next >= p.tokens.size() || (p.text[next] == 0 && p.answer[next] == 0)) continue;
        const float* x = llama_get_logits_ith(ctx, i);
        const int32_t want = p.tokens[next];
        if (p.answer[next] != 0) {
          ++asked;
          right += std::max_element(x, x + vocab) - x == want;
        }
        if (p.text[next] == 0) continue;
        nll += static_cast<double>(sluice::kernels::LogSumExp(x, vocab) - x[want]);
        ++counted;
      }
    }
    prefill.push_back(Seconds(from));
    int32_t token = p.tokens.back();
    const auto steps = std::chrono::steady_clock::now();
    for (int s = 0; s < o.decode; ++s) {
      batch.n_tokens = 1;
      batch.token[0] = token;
      batch.pos[0] = static_cast<llama_pos>(n + s);
      batch.n_seq_id[0] = 1;
      batch.seq_id[0][0] = 0;
      batch.logits[0] = 1;
      if (llama_decode(ctx, batch) != 0)
        return std::fprintf(stderr, "llama_decode failed at step %d\n", s), 1;
      const float* x = llama_get_logits_ith(ctx, 0);
      token = static_cast<int32_t>(std::max_element(x, x + vocab) - x);
    }
    decode.push_back(Seconds(steps) / std::max(1, o.decode));
  }
  json j = {{"prefill_s", sluice::lab::Median(prefill)},
            {"decode_ms", 1e3 * sluice::lab::Median(decode)}};
  if (o.quality) {
    j["perplexity"] = std::exp(nll / static_cast<double>(counted));
    j["facts"] = static_cast<double>(right) / static_cast<double>(asked);
  }
  std::printf("%s\n", j.dump().c_str());
  llama_batch_free(batch);
  llama_free(ctx);
  llama_model_free(model);
  return 0;
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
}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Runs a GGUF model in an unmodified llama.cpp, with its own CPU flash attention and with "
      "Sluice's backend in "
      "turn."};
  Options o;
  std::string backend = SLUICE_BACKEND, attention = "dense", decode, counters;
  int repeats = 7, decode_min = -1;
  bool child = false, spaces = false;
  o.model = sluice::host::ModelsFolder() + "/sluice-mini-q8_0.gguf";
  o.tokens = sluice::host::ModelsFolder() + "/sluice-mini-eval.u16";
  app.add_option("--model", o.model, "GGUF file")->capture_default_str();
  app.add_option("--tokens", o.tokens, "held-out text, little-endian 16-bit token ids")
      ->capture_default_str();
  app.add_option("--skip", o.skip, "tokens to skip")->capture_default_str();
  app.add_option("--libs", o.libs, "folder of llama.cpp's shared libraries")->capture_default_str();
  app.add_option("--backend", backend, "libggml-sluice.so")->capture_default_str();
  app.add_option("--attention", attention,
                 "router of prefill (and of decode, unless --decode-attention)")
      ->capture_default_str();
  app.add_option("--decode-attention", decode, "router of decode");
  app.add_option("--decode-min-keys", decode_min,
                 "steps over fewer keys stay with llama.cpp; -1: where it does not pay")
      ->capture_default_str();
  app.add_option("--counters", counters, "file for the backend's counters");
  app.add_option("--context", o.context, "tokens of a document")
      ->capture_default_str()
      ->check(CLI::Range(64, 1 << 20));
  app.add_option("--documents", o.documents, "documents")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--facts", o.facts, "facts planted in a document")
      ->capture_default_str()
      ->check(CLI::Range(1, 16));
  app.add_flag("--spaces", spaces, "plant facts between spaces, as some models learned them");
  app.add_option("--threads", o.threads, "of both")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--ubatch", o.ubatch, "tokens a pass")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  app.add_option("--steps", o.decode, "decode steps after each document")->capture_default_str();
  app.add_option("--repeats", repeats, "timed runs of each, in turn; 0: quality only")
      ->capture_default_str();
  app.add_flag("--auto-flash", o.auto_flash,
               "let llama.cpp decide about flash attention (-fa auto)");
  app.add_flag("--quality", o.quality)->group("");
  app.add_flag("--child", child)->group("");
  app.footer("Example: llama_compare --context 16384 --attention 'mean_pool:k=32'");
  CLI11_PARSE(app, argc, argv);
  if (spaces) o.separator = " ";
  if (child) return Child(o);

  const std::string config = absl::StrCat("/tmp/sluice-ggml-", getpid(), ".conf");
  {
    std::ofstream f(config);
    f << "attention = " << attention << "\n";
    if (!decode.empty()) f << "decode = " << decode << "\n";
    f << "decode_min_keys = " << decode_min << "\n";
    if (!counters.empty()) f << "counters = " << counters << "\n";
  }
  const std::vector<std::string> given(argv + 1, argv + argc);
  const auto fail = [&](const absl::Status& s) {
    std::fprintf(stderr, "error: %s\n", std::string(s.message()).c_str());
    unlink(config.c_str());
    return 1;
  };
  std::vector<std::string> quality = given, timed = given;
  quality.push_back("--quality");
  std::printf("%d tokens, %d documents, %d threads, passes of %d\n", o.context, o.documents,
              o.threads, o.ubatch);
  const auto plain = Run(quality, "", config), routed = Run(quality, backend, config);
  if (!plain.ok()) return fail(plain.status());
  if (!routed.ok()) return fail(routed.status());
  std::printf(
      "%-10s %12s %8s\n%-10s %12.4f %8.3f\n%-10s %12.4f %8.3f   (perplexity %+.3f %%, facts %+.1f "
      "points)\n",
      "", "perplexity", "facts", "llama.cpp", (*plain)["perplexity"].get<double>(),
      (*plain)["facts"].get<double>(), "sluice", (*routed)["perplexity"].get<double>(),
      (*routed)["facts"].get<double>(),
      100 * ((*routed)["perplexity"].get<double>() / (*plain)["perplexity"].get<double>() - 1),
      100 * ((*routed)["facts"].get<double>() - (*plain)["facts"].get<double>()));
  std::fflush(stdout);
  std::vector<double> a, b, c, d, e, f;
  for (int r = 0; r < repeats; ++r) {
    const auto x = Run(timed, "", config), y = Run(timed, backend, config);
    if (!x.ok()) return fail(x.status());
    if (!y.ok()) return fail(y.status());
    a.push_back((*x)["prefill_s"]);
    b.push_back((*y)["prefill_s"]);
    c.push_back(a.back() / b.back());
    d.push_back((*x)["decode_ms"]);
    e.push_back((*y)["decode_ms"]);
    f.push_back(d.back() / e.back());
  }
  unlink(config.c_str());
  if (repeats == 0) return 0;
  std::printf(
      "prefill    %.3f s -> %.3f s, %.2fx; decode %.2f ms -> %.2f ms, %.2fx (medians of %d runs of "
      "each in turn)\n",
      sluice::lab::Median(a), sluice::lab::Median(b), sluice::lab::Median(c),
      sluice::lab::Median(d), sluice::lab::Median(e), sluice::lab::Median(f), repeats);
  return 0;
}
