#ifndef SLUICE_RUNTIME_TEXT_ENCODER_H_
#define SLUICE_RUNTIME_TEXT_ENCODER_H_
// A small BERT-style classifier: says which task family a text is of. Layers are dense, or
// converted to heads of which a head router takes one, and then routed over all or pruned to one.
// Sequences run side by side, each at its own length: there is no padding that could vote or cost.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/api/executor.h"
#include "sluice/api/router.h"
#include "sluice/runtime/text/tokenizer.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
struct EncoderShape {
  int64_t layers = 0, width = 0, heads = 0, ffn = 0, context = 0, vocab = 0, classes = 0;
  float eps = 1e-12f;
  int64_t head_dim() const { return width / heads; }
};
struct EncoderNorm {
  std::vector<float> weight, bias;
};
struct EncoderLayer {
  bool dense = true;
  int64_t experts = 1;  // heads that are there
  // Per head, its rows of q, k and v one behind the other: [experts][3][head_dim, width].
  std::vector<float> qkv, qkv_bias;
  std::vector<float> out, out_bias;                 // dense only
  std::vector<float> up, up_bias, down, down_bias;  // FFN, or the expander of a converted layer
  EncoderNorm middle, last;                         // `middle`: dense only
  // Of a converted layer with more than one head: the router that the file names, and how often
  // training saw it pick each head.
  std::shared_ptr<const Router> router;
  std::shared_ptr<const Router::Plan> plan;
  int64_t router_parameters = 0;
  std::vector<float> usage;
};

class Encoder {
 public:
  // A "bert" GGUF file, whole. `conversion` (optional) replaces the layers it names and the
  // classifier.
  static absl::StatusOr<Encoder> Load(const Gguf& file, const Gguf* conversion = nullptr);
  // The same model with every routed layer cut to its most used head, without routers.
  Encoder Pruned() const;
  // A file of its own: what is not converted is copied byte for byte, converted layers hold the
  // kept head only.
  static absl::Status WritePruned(const Gguf& file, const Gguf& conversion,
                                  const std::string& path);

  struct Result {
    std::vector<float> logits;   // [sequences, classes]
    std::vector<int32_t> picks;  // [sequences, layers]; -1: dense
    int64_t macs = 0;            // multiply-adds done in layers
  };
  // Tokens beyond the context are cut. An empty sequence is an error. `forced` (optional): one head
  // a layer for everything, -1: the router's.
  absl::StatusOr<Result> Run(const std::vector<std::vector<int32_t>>& sequences, Executor& executor,
                             const std::vector<int32_t>& forced = {}) const;
  const EncoderShape& shape() const { return shape_; }
  const std::vector<EncoderLayer>& layers() const { return layers_; }
  const std::vector<std::string>& labels() const { return labels_; }
  const std::optional<Tokenizer>& tokenizer() const { return tokenizer_; }
  int64_t layer_parameters() const;  // of all layers, without embeddings and classifier
  // Output of the heads [n, heads * head_dim] before the projection or expander; for tests.
  std::vector<float> HeadOutputs(int64_t layer, int64_t first, int64_t heads,
                                 const std::vector<float>& x) const;

 private:
  struct Scratch;
  void RunOne(const std::vector<int32_t>& ids, const std::vector<int32_t>& forced, Scratch& s,
              float* logits, int32_t* picks) const;
  absl::Status MakeRouter(const Gguf& f, int64_t i, EncoderLayer& l) const;
  absl::Status ReadLayer(const Gguf& f, int64_t i, bool converted, EncoderLayer& l) const;
  EncoderShape shape_;
  std::vector<float> tokens_, places_, classifier_, classifier_bias_;
  EncoderNorm norm_;
  std::vector<EncoderLayer> layers_;
  std::vector<std::string> labels_;
  std::optional<Tokenizer> tokenizer_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_TEXT_ENCODER_H_
