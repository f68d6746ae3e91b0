#ifndef SLUICE_RUNTIME_TEXT_TOKENIZER_H_
#define SLUICE_RUNTIME_TEXT_TOKENIZER_H_
#include <array>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/statusor.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
// Byte-level BPE as GGUF files carry it (tokenizer.ggml.model = gpt2). Text is split as GPT-2 does,
// with every character outside ASCII taken for a letter.
class Tokenizer {
 public:
  // Refuses what is not implemented by its key: another model or pre-tokenizer, tokens added to a
  // text, kinds of tokens that split it.
  static absl::StatusOr<Tokenizer> Load(const Gguf& file);
  std::vector<int32_t> Encode(const std::string& text) const;
  std::string Decode(const std::vector<int32_t>& ids) const;
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  int32_t eos() const { return eos_; }

 private:
  void EncodeWord(const std::string& word, std::vector<int32_t>* out) const;
  // Rank and result of a merge, or null.
  const std::pair<int32_t, int32_t>* MergeOf(int32_t left, int32_t right) const;
  std::vector<std::string> bytes_;               // id -> raw bytes
  std::unordered_map<std::string, int32_t> id_;  // raw bytes -> id
  std::unordered_map<uint64_t, std::pair<int32_t, int32_t>>
      merge_;  // (left, right) -> (rank, result)
  std::array<int32_t, 256> byte_id_{};
  int32_t eos_ = 0;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_TEXT_TOKENIZER_H_
