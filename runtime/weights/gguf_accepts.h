#ifndef SLUICE_RUNTIME_WEIGHTS_GGUF_ACCEPTS_H_
#define SLUICE_RUNTIME_WEIGHTS_GGUF_ACCEPTS_H_
// What a loader implements of a file, as a list: a key, a value or a tensor that is not on it is
// refused by its name, since ignoring it would change what the model computes.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
class GgufAccepts {
 public:
  // A key whatever its value is: one that the loader reads, or that changes nothing.
  GgufAccepts& Key(std::string key);
  // All keys that begin so, unless a line of their own says more.
  GgufAccepts& KeyPrefix(std::string prefix);
  // A key with one of these values only; numbers are compared as numbers.
  GgufAccepts& KeyIs(std::string key, std::vector<GgufValue> values);
  GgufAccepts& Tensor(std::string name);

  // Unimplemented, with the first key or tensor that is not accepted. Keys: those that begin with
  // `prefix`, "" for all.
  absl::Status CheckKeys(const Gguf& file, const std::string& prefix = "") const;
  absl::Status CheckTensors(const Gguf& file) const;

 private:
  std::map<std::string, std::vector<GgufValue>> keys_;  // no values: any
  std::vector<std::string> prefixes_;
  std::set<std::string> tensors_;
};
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_WEIGHTS_GGUF_ACCEPTS_H_
