// Writing to the pages of keys and values, and copying them.
#include "bindings/bindings.h"

#include <cstdint>

#include "cpu/kv_pages.h"

namespace py = pybind11;

namespace ruprompt {

void register_kv_pages(py::module_& m) {
  m.def(
      "write_kv",
      [](Address key, int64_t key_token_stride, int64_t key_head_stride, int64_t head_dim, Address value,
         int64_t value_token_stride, int64_t value_head_stride, int64_t value_dim, Address key_pages,
         Address value_pages, int64_t num_pages, int64_t kv_heads, int64_t element_bytes, Address write_slots,
         int64_t tokens, int threads) {
        return write_kv({pointer<const void>(key), key_token_stride, key_head_stride, head_dim},
                        {pointer<const void>(value), value_token_stride, value_head_stride, value_dim},
                        {pointer<void>(key_pages), pointer<void>(value_pages), num_pages, kv_heads, element_bytes},
                        pointer<const int64_t>(write_slots), tokens, threads);
      },
      py::arg("key"), py::arg("key_token_stride"), py::arg("key_head_stride"), py::arg("head_dim"), py::arg("value"),
      py::arg("value_token_stride"), py::arg("value_head_stride"), py::arg("value_dim"), py::arg("key_pages"),
      py::arg("value_pages"), py::arg("num_pages"), py::arg("kv_heads"), py::arg("element_bytes"),
      py::arg("write_slots"), py::arg("tokens"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "copy_pages",
      [](Address pages, int64_t num_pages, int64_t page_bytes, Address pairs, int index_width, int64_t count,
         int threads) {
        char* data = pointer<char>(pages);
        return index_width == 4
                   ? copy_pages(data, num_pages, page_bytes, pointer<const int32_t>(pairs), count, threads)
                   : copy_pages(data, num_pages, page_bytes, pointer<const int64_t>(pairs), count, threads);
      },
      py::arg("pages"), py::arg("num_pages"), py::arg("page_bytes"), py::arg("pairs"), py::arg("index_width"),
      py::arg("count"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace ruprompt
