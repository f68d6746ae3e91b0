#ifndef SLUICE_RUNTIME_HOST_SPARSE_WEIGHTS_H_
#define SLUICE_RUNTIME_HOST_SPARSE_WEIGHTS_H_
// The layers' matrices without what a pruner dropped, packed beside the plain ones for the products
// that they make faster: scattered weights for few rows (a decode step), blocks for one row and for
// prompts. From which density on is measured: tests/bench/README.md, *Sparse products*.
#include <cstdint>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "sluice/runtime/host/model.h"
#include "sluice/runtime/kernels/sparse_linear/sparse_matrix.h"

SLUICE_BEGIN_NAMESPACE
namespace host {
class SparseWeights {
 public:
  // What is packed, of all matrices of the layers (q, k and v are one, gate and up are one; of a
  // Mixture of Experts these two of every expert).
  struct Held {
    int64_t matrices = 0, of = 0;
    int64_t weights = 0, kept = 0;  // of the packed ones
    int64_t bytes = 0;              // that a product with each of them reads
  };

  // Nothing is packed.
  SparseWeights() = default;
  // `how`: "off"; "bitmap"; "N:M", at most N of every M neighbours are kept; or "RxC", blocks of R
  // rows and C columns. Values are held in half precision where that loses nothing, as of files in
  // that type. The weights are those that the model has now; a matrix that is not of this
  // pattern, or so dense that packing does not pay, is left as it is. InvalidArgument for another
  // text, and where no matrix is left to pack: what it says names the sparsest. O(weights).
  static absl::StatusOr<SparseWeights> Create(const Model& model, const std::string& how);

  // The packed matrix of `rows` rows that begins at `w`, where there is one that is the faster way
  // to multiply with n rows; else null. A part of a matrix's rows is no matrix.
  const SparseMatrix* Find(const float* w, int64_t rows, int64_t n) const;
  // Of a product with any of them and at most n rows on so many workers.
  size_t workspace_bytes(int64_t n, int workers) const;
  const Held& held() const { return held_; }

 private:
  std::unordered_map<const float*, SparseMatrix> packed_;
  Held held_;
};
}  // namespace host
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_HOST_SPARSE_WEIGHTS_H_
