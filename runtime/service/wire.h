#ifndef SLUICE_RUNTIME_SERVICE_WIRE_H_
#define SLUICE_RUNTIME_SERVICE_WIRE_H_
// Fields of protobuf's wire format, written where there is room for them.
#include <bit>
#include <cstdint>
#include <cstring>

#include "absl/strings/string_view.h"
#include "sluice/api/version.h"

SLUICE_BEGIN_NAMESPACE
namespace wire {
inline constexpr size_t kMaxVarint = 10;
enum Type : uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2 };
// Of a field whose number is below 16: one byte.
constexpr char Tag(int field, Type type) { return static_cast<char>(field << 3 | type); }

constexpr size_t VarintSize(uint64_t v) {
  return static_cast<size_t>(std::bit_width(v | 1) + 6) / 7;
}
// Each returns where it ended.
inline char* PutVarint(uint64_t v, char* to) {
  for (; v >= 0x80; v >>= 7) *to++ = static_cast<char>(v | 0x80);
  *to++ = static_cast<char>(v);
  return to;
}
inline char* PutRaw(absl::string_view bytes, char* to) {
  std::memcpy(to, bytes.data(), bytes.size());
  return to + bytes.size();
}
inline char* PutBytes(absl::string_view bytes, char* to) {
  return PutRaw(bytes, PutVarint(bytes.size(), to));
}
inline size_t BytesSize(size_t n) { return VarintSize(n) + n; }
// Little-endian, as every machine that this is built for.
inline char* PutDouble(double v, char* to) {
  static_assert(std::endian::native == std::endian::little);
  std::memcpy(to, &v, sizeof v);
  return to + sizeof v;
}
}  // namespace wire
SLUICE_END_NAMESPACE
#endif  // SLUICE_RUNTIME_SERVICE_WIRE_H_
