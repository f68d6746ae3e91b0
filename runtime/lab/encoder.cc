#include "sluice/runtime/lab/encoder.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "sluice/api/check.h"
#include "sluice/runtime/kernels/softmax/softmax.h"
#include "sluice/runtime/report/report.h"
#include "sluice/runtime/text/encoder.h"
#include "sluice/runtime/weights/gguf.h"

SLUICE_BEGIN_NAMESPACE
namespace lab {
absl::Status Classify(const std::string& path, const std::string& text) {
  SLUICE_ASSIGN_OR_RETURN(const Gguf file, Gguf::Open(path));
  SLUICE_ASSIGN_OR_RETURN(const Encoder encoder, Encoder::Load(file));
  if (!encoder.tokenizer().has_value())
    return absl::InvalidArgumentError(absl::StrCat(path, " has no tokenizer"));
  InlineExecutor one;
  SLUICE_ASSIGN_OR_RETURN(const Encoder::Result said,
                          encoder.Run({encoder.tokenizer()->Encode(text)}, one));
  std::vector<float> p = said.logits;
  kernels::Softmax(p.data(), static_cast<int64_t>(p.size()));
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  for (size_t i = 0; i < std::min<size_t>(3, order.size()); ++i)
    std::printf("%.3f  %s\n", static_cast<double>(p[order[i]]), encoder.labels()[order[i]].c_str());
  return absl::OkStatus();
}
absl::Status PruneEncoder(const std::string& encoder, const std::string& conversion,
                          const std::string& out) {
  SLUICE_RETURN_IF_ERROR(CheckWritable(out));
  SLUICE_ASSIGN_OR_RETURN(const Gguf dense, Gguf::Open(encoder));
  SLUICE_ASSIGN_OR_RETURN(const Gguf converted, Gguf::Open(conversion));
  SLUICE_RETURN_IF_ERROR(Encoder::WritePruned(dense, converted, out));
  std::printf("wrote %s: %ju bytes (dense: %ju)\n", out.c_str(), std::filesystem::file_size(out),
              std::filesystem::file_size(encoder));
  return absl::OkStatus();
}
}  // namespace lab
SLUICE_END_NAMESPACE
