// A Python interpreter as Slicer's: a QApplication, PythonQt and the widgets of the panel are in it.
//
// usage: host PYTHON ARGUMENTS...   (PYTHON: the interpreter whose environment is seen; the rest as for python itself)

#include "widgets.h"

#include "PythonQt.h"
#include "PythonQt_QtAll.h"

#include "ctkCollapsibleButton.h"
#include "ctkComboBox.h"
#include "ctkMenuButton.h"
#include "ctkPathLineEdit.h"

#include <QApplication>
#include <QtPlugin>

#include <cstdio>

namespace {

template <class Widget> QWidget* make(QWidget* parent) { return new Widget(parent); }

/// What the .ui files name.
const QList<CustomWidget> customWidgets = {
  {"qMRMLWidget", make<qMRMLWidget>, true},
  {"qMRMLNodeComboBox", make<qMRMLNodeComboBox>, false},
  {"qMRMLSegmentationShow3DButton", make<qMRMLSegmentationShow3DButton>, false},
  {"ctkCollapsibleButton", make<ctkCollapsibleButton>, true},
  {"ctkComboBox", make<ctkComboBox>, false},
  {"ctkMenuButton", make<ctkMenuButton>, false},
  {"ctkPathLineEdit", make<ctkPathLineEdit>, false},
};

void registerClasses()
{
  PythonQt::self()->registerClass(&qMRMLWidget::staticMetaObject, "slicerwidgets");
  PythonQt::self()->registerClass(&qMRMLNodeComboBox::staticMetaObject, "slicerwidgets");
  PythonQt::self()->registerClass(&qMRMLSegmentationShow3DButton::staticMetaObject, "slicerwidgets");
  PythonQt::self()->registerClass(&ctkCollapsibleButton::staticMetaObject, "ctkwidgets");
  PythonQt::self()->registerClass(&ctkComboBox::staticMetaObject, "ctkwidgets");
  PythonQt::self()->registerClass(&ctkMenuButton::staticMetaObject, "ctkwidgets");
  PythonQt::self()->registerClass(&ctkPathLineEdit::staticMetaObject, "ctkwidgets");
  PythonQt::self()->addDecorators(new Constructors);
  PythonQt::self()->addWrapperFactory(new VtkObjects);
}

bool startPython(int argc, char** argv)
{
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  // argv[1] is the program, as far as Python knows: it finds the environment beside it.
  PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, argv[1]);
  if (!PyStatus_Exception(status)) {
    status = PyConfig_SetBytesArgv(&config, argc - 1, argv + 1);
  }
  if (!PyStatus_Exception(status)) {
    status = Py_InitializeFromConfig(&config);
  }
  PyConfig_Clear(&config);
  if (PyStatus_Exception(status)) {
    std::fprintf(stderr, "Python does not start: %s\n", status.err_msg);
    return false;
  }
  return true;
}

} // namespace

QList<QDesignerCustomWidgetInterface*> CustomWidgets::customWidgets() const
{
  QList<QDesignerCustomWidgetInterface*> all;
  for (const CustomWidget& one : ::customWidgets) {
    all << new CustomWidget(one);
  }
  return all;
}

Q_IMPORT_PLUGIN(CustomWidgets)

int main(int argc, char** argv)
{
  if (argc < 2) {
    std::fprintf(stderr, "usage: host PYTHON ARGUMENTS...\n");
    return 2;
  }
  QApplication application(argc, argv);
  if (!startPython(argc, argv)) {
    return 1;
  }
  PythonQt::init(PythonQt::PythonAlreadyInitialized); // output stays Python's own
  PythonQt_QtAll::init();
  registerClasses();
  return Py_RunMain();
}
