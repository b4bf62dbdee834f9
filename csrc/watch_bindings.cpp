// A watch over Python objects: whether what was seen of them at its making is still so. A look at hundreds of
// facts takes a few microseconds, which a call of a mixed operation can afford.
#include "python.h"

using namespace srnas_fast_python;

void bind_watch(py::module_& m);

namespace {

class Watch {
public:
    // objects: whose type must stay; sized: dicts whose length must stay; entries: (dict, key, value);
    // contents: dicts of which all keys and values must stay, in their order.
    Watch(const py::list& objects, const py::list& sized, const py::list& entries, const py::list& contents) {
        const auto keep = [](py::handle item) { return py::reinterpret_borrow<py::object>(item); };
        for (const auto& item : objects) {
            objects_.push_back(keep(item));
            objects_.push_back(keep(py::type::handle_of(item)));
        }
        for (const auto& item : sized) {
            sized_.push_back(keep(item));
            lengths_.push_back(PyDict_Size(item.ptr()));
        }
        for (const auto& item : entries) {
            for (const auto& part : item) entries_.push_back(py::reinterpret_borrow<py::object>(part));
        }
        for (const auto& item : contents) {
            contents_.push_back(py::reinterpret_borrow<py::object>(item));
            sizes_.push_back(PyDict_Size(item.ptr()));
            PyObject *key, *value;
            for (Py_ssize_t at = 0; PyDict_Next(item.ptr(), &at, &key, &value);) {
                pairs_.push_back(py::reinterpret_borrow<py::object>(key));
                pairs_.push_back(py::reinterpret_borrow<py::object>(value));
            }
        }
    }

    bool holds() const {
        for (size_t i = 0; i + 1 < objects_.size(); i += 2) {
            if (reinterpret_cast<PyObject*>(Py_TYPE(objects_[i].ptr())) != objects_[i + 1].ptr())
                return false;
        }
        for (size_t i = 0; i < sized_.size(); ++i) {
            if (PyDict_Size(sized_[i].ptr()) != lengths_[i]) return false;
        }
        for (size_t i = 0; i + 2 < entries_.size(); i += 3) {
            if (PyDict_GetItemWithError(entries_[i].ptr(), entries_[i + 1].ptr()) != entries_[i + 2].ptr()) {
                PyErr_Clear();
                return false;
            }
        }
        size_t pair = 0;
        for (size_t i = 0; i < contents_.size(); ++i) {
            if (PyDict_Size(contents_[i].ptr()) != sizes_[i]) return false;
            PyObject *key, *value;
            for (Py_ssize_t at = 0; PyDict_Next(contents_[i].ptr(), &at, &key, &value); pair += 2) {
                // Names of attributes are interned, so equal ones are one object.
                if (key != pairs_[pair].ptr() || value != pairs_[pair + 1].ptr()) return false;
            }
        }
        return true;
    }

    int traverse(visitproc visit, void* arg) const {
        for (const auto* all : {&objects_, &sized_, &entries_, &contents_, &pairs_}) {
            for (const py::object& object : *all) Py_VISIT(object.ptr());
        }
        return 0;
    }
    void clear() {
        for (auto* all : {&objects_, &sized_, &entries_, &contents_, &pairs_})
            std::vector<py::object>().swap(*all);
        sizes_.clear();
        lengths_.clear();
    }

private:
    std::vector<py::object> objects_, sized_, entries_, contents_, pairs_;
    std::vector<Py_ssize_t> lengths_, sizes_;
};

Watch* watch_of(PyObject* self) {
    // The collector may come by before the object is made.
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    if (!instance->get_value_and_holder().holder_constructed()) return nullptr;
    return py::cast<Watch*>(py::handle(self));
}

// It refers to the objects that refer to it: the garbage collector must be able to follow.
void collect_garbage(PyHeapTypeObject* heap) {
    PyTypeObject& type = heap->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
        Py_VISIT(Py_TYPE(self));
        const Watch* const watch = watch_of(self);
        return watch ? watch->traverse(visit, arg) : 0;
    };
    type.tp_clear = [](PyObject* self) {
        if (Watch* const watch = watch_of(self)) watch->clear();
        return 0;
    };
}

}  // namespace

void bind_watch(py::module_& m) {
    py::class_<Watch>(m, "Watch", py::custom_type_setup(collect_garbage))
        .def(py::init<const py::list&, const py::list&, const py::list&, const py::list&>())
        .def("holds", &Watch::holds);
}
