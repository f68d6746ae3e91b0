#ifndef SLUICE_TESTS_SUPPORT_READ_FILE_H_
#define SLUICE_TESTS_SUPPORT_READ_FILE_H_
// Files of plain numbers that lie beside the models.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
template <class T>
std::vector<T> ReadFile(const std::string& path) {
  std::ifstream f(path, std::ios::binary);
  std::vector<char> raw((std::istreambuf_iterator<char>(f)), {});
  std::vector<T> out(raw.size() / sizeof(T));
  std::memcpy(out.data(), raw.data(), out.size() * sizeof(T));
  return out;
}
// The first n of 16-bit token ids.
inline std::vector<int32_t> EvalTokens(const std::string& path, size_t n) {
  std::vector<int32_t> out;
  for (uint16_t t : ReadFile<uint16_t>(path)) {
    if (out.size() == n) break;
    out.push_back(t);
  }
  return out;
}
SLUICE_END_NAMESPACE
#endif  // SLUICE_TESTS_SUPPORT_READ_FILE_H_
