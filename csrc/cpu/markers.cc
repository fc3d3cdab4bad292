#include "cpu/markers.h"

#include <algorithm>

namespace ruprompt {
namespace {

bool by_id(const Marker& left, const Marker& right) { return left.marker < right.marker; }

template <typename In, typename Out>
MarkerMismatch resolve_typed(const In* ids, int64_t sequences, int64_t length, const std::vector<Marker>& markers,
                             Out* out) {
  // Markers are together at the end of a vocabulary: almost every id falls outside this span at one comparison.
  const int64_t lowest = markers.empty() ? 1 : markers.front().marker;
  const int64_t highest = markers.empty() ? 0 : markers.back().marker;
  std::vector<int64_t> found(markers.size());
  for (int64_t s = 0; s < sequences; ++s) {
    bool any = false;
    for (int64_t i = s * length; i < (s + 1) * length; ++i) {
      const auto id = static_cast<int64_t>(ids[i]);
      out[i] = static_cast<Out>(id);
      if (id < lowest || id > highest) continue;
      const auto match = std::lower_bound(markers.begin(), markers.end(), Marker{id, 0, 0}, by_id);
      if (match->marker != id) continue;
      out[i] = static_cast<Out>(match->start + found[static_cast<size_t>(match - markers.begin())]++);
      any = true;
    }
    if (!any) continue;
    for (size_t m = 0; m < markers.size(); ++m) {
      if (found[m] != 0 && found[m] != markers[m].rows) return {s, markers[m].marker, found[m], markers[m].rows};
      found[m] = 0;
    }
  }
  return {-1, 0, 0, 0};
}

}  // namespace

MarkerMismatch resolve_markers(const void* ids, int id_width, int64_t sequences, int64_t length,
                               std::vector<Marker> markers, void* out, int out_width) {
  std::sort(markers.begin(), markers.end(), by_id);
  if (id_width == 8) {
    return resolve_typed(static_cast<const int64_t*>(ids), sequences, length, markers, static_cast<int64_t*>(out));
  }
  if (out_width == 8) {
    return resolve_typed(static_cast<const int32_t*>(ids), sequences, length, markers, static_cast<int64_t*>(out));
  }
  return resolve_typed(static_cast<const int32_t*>(ids), sequences, length, markers, static_cast<int32_t*>(out));
}

}  // namespace ruprompt
