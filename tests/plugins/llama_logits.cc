// Runs a fixed series of batches through an unmodified llama.cpp and writes every token's logits:
// a prompt in chunks and steps after it, two sequences with caches of their own and with one cache,
// and steps after a shift of the context. Run with and without a backend, the files are compared.
//
//   llama_logits MODEL.gguf LIBS OUT.f32 CACHE   (CACHE: f16, q8_0, ...)
//
// Says on stdout, as JSON: the width of a row, how many rows each series gave, and the attention
// operations that llama.cpp computed, an operation over n streams counting n times.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

namespace {
constexpr int kChunk = 64;
constexpr int kContext = 512;

struct Entry {
  int sequence;
  int position;
};

bool CountAttention(ggml_tensor* t, bool ask, void* count) {
  if (ask && t->op == GGML_OP_FLASH_ATTN_EXT) *static_cast<int64_t*>(count) += t->src[0]->ne[3];
  return false;  // nothing is to be looked at: the graph runs as it would without this
}

// Tokens that depend on where they stand only, so that runs cannot drift apart.
llama_token TokenAt(const Entry& e, int vocabulary) {
  const auto x = static_cast<uint32_t>(e.position * 2 + e.sequence + 1) * 2654435761U;
  return static_cast<llama_token>((x >> 8) % static_cast<uint32_t>(vocabulary));
}

class Context {
 public:
  Context(llama_model* model, ggml_type cache, int sequences, bool unified, std::ofstream& out,
          int64_t& operations)
      : cache_(cache), vocabulary_(llama_vocab_n_tokens(llama_model_get_vocab(model))), out_(out) {
    llama_context_params p = llama_context_default_params();
    p.n_ctx = static_cast<uint32_t>(kContext * sequences);
    p.n_batch = p.n_ubatch = kChunk;
    p.n_seq_max = static_cast<uint32_t>(sequences);
    p.n_threads = p.n_threads_batch = 1;
    p.kv_unified = unified;
    p.type_k = p.type_v = cache;
    p.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    p.cb_eval = CountAttention;
    p.cb_eval_user_data = &operations;
    context_ = llama_init_from_model(model, p);
    if (context_ == nullptr) throw std::runtime_error("llama.cpp makes no context of this model");
    batch_ = llama_batch_init(kChunk, 0, 1);
  }
  ~Context() {
    llama_batch_free(batch_);
    llama_free(context_);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  void Decode(const std::vector<Entry>& entries) {
    batch_.n_tokens = static_cast<int32_t>(entries.size());
    for (int32_t i = 0; i < batch_.n_tokens; ++i) {
      batch_.token[i] = TokenAt(entries[i], vocabulary_);
      batch_.pos[i] = entries[i].position;
      batch_.n_seq_id[i] = 1;
      batch_.seq_id[i][0] = entries[i].sequence;
      batch_.logits[i] = 1;
    }
    if (llama_decode(context_, batch_) != 0) throw std::runtime_error("llama_decode failed");
    for (int32_t i = 0; i < batch_.n_tokens; ++i) {
      out_.write(reinterpret_cast<const char*>(llama_get_logits_ith(context_, i)),
                 static_cast<std::streamsize>(sizeof(float)) * vocabulary_);
    }
    rows_ += batch_.n_tokens;
  }
  void Prompt(int sequence, int first, int last) {
    for (int at = first; at < last; at += kChunk) {
      std::vector<Entry> chunk;
      for (int i = at; i < std::min(last, at + kChunk); ++i) chunk.push_back({sequence, i});
      Decode(chunk);
    }
  }
  // llama.cpp v0.5.0 ends in a null pointer where it shifts a quantised cache whose heads are of
  // another width than a multiple of 64: quantised caches are not shifted here.
  bool can_shift() const {
    return !ggml_is_quantized(cache_) && llama_memory_can_shift(llama_get_memory(context_));
  }
  // Drops the tokens [first, last) and moves what follows up to them.
  void Shift(int first, int last) {
    const llama_memory_t memory = llama_get_memory(context_);
    if (!llama_memory_seq_rm(memory, 0, first, last))
      throw std::runtime_error("llama.cpp does not drop these tokens");
    llama_memory_seq_add(memory, 0, last, -1, first - last);
  }
  int rows() const { return rows_; }
  int vocabulary() const { return vocabulary_; }

 private:
  const ggml_type cache_;
  const int vocabulary_;
  std::ofstream& out_;
  llama_context* context_ = nullptr;
  llama_batch batch_ = {};
  int rows_ = 0;
};

void OnePrompt(Context& c) {
  c.Prompt(0, 0, 160);
  for (int i = 160; i < 166; ++i) c.Decode({{0, i}});
}
void TwoSequences(Context& c) {
  // Lengths that differ, so that passes of one sequence and of both occur, and steps of both.
  std::vector<Entry> both;
  for (int i = 0; i < 36; ++i) both.push_back({0, i});
  for (int i = 0; i < 20; ++i) both.push_back({1, i});
  c.Decode(both);
  c.Prompt(0, 36, 110);
  c.Prompt(1, 20, 60);
  for (int i = 0; i < 4; ++i) c.Decode({{0, 110 + i}, {1, 60 + i}});
}
void Shifted(Context& c) {
  c.Prompt(0, 0, 150);
  if (!c.can_shift()) return;
  c.Shift(8, 40);
  for (int i = 118; i < 122; ++i) c.Decode({{0, i}});
  c.Prompt(0, 122, 150);
}

void Run(const char* path, const char* libs, const char* out_path, ggml_type cache) {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
      },
      nullptr);
  ggml_backend_load_all_from_path(libs);
  llama_model* model = llama_model_load_from_file(path, llama_model_default_params());
  if (model == nullptr) throw std::runtime_error("llama.cpp does not load this model");
  std::ofstream out(out_path, std::ios::binary);
  int64_t operations = 0;
  struct Series {
    const char* name;
    int sequences;
    bool unified;
    void (*run)(Context&);
  };
  const std::array<Series, 4> all = {{{"prompt", 1, false, OnePrompt},
                                      {"two caches", 2, false, TwoSequences},
                                      {"one cache", 2, true, TwoSequences},
                                      {"shift", 1, false, Shifted}}};
  std::string series;
  int vocabulary = 0;
  for (const Series& s : all) {
    Context context(model, cache, s.sequences, s.unified, out, operations);
    s.run(context);
    vocabulary = context.vocabulary();
    if (!series.empty()) series += ", ";
    series += "\"" + std::string(s.name) + "\": " + std::to_string(context.rows());
  }
  llama_model_free(model);
  out.flush();
  if (!out) throw std::runtime_error("the logits cannot be written");
  std::printf("{\"vocabulary\": %d, \"series\": {%s}, \"operations\": %lld}\n", vocabulary,
              series.c_str(), static_cast<long long>(operations));
}
}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: llama_logits MODEL.gguf LIBS OUT.f32 CACHE\n");
    return 2;
  }
  int type = 0;
  while (type < GGML_TYPE_COUNT && std::strcmp(ggml_type_name(ggml_type(type)), argv[4]) != 0)
    ++type;
  try {
    if (type == GGML_TYPE_COUNT) throw std::runtime_error("no such type of cache");
    Run(argv[1], argv[2], argv[3], static_cast<ggml_type>(type));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", argv[1], e.what());
    return 1;
  }
  return 0;
}
