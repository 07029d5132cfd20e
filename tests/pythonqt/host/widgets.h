// Stand-ins for Slicer's qMRML widgets, without VTK: nodes are the Python objects of slicer-core, known by their id.
#pragma once

#include "PythonQtPythonInclude.h"

#include "ctkMenuButton.h"

#include <QComboBox>
#include <QIcon>
#include <QStringList>
#include <QVBoxLayout>
#include <QWidget>
#include <QtUiPlugin/QDesignerCustomWidgetCollectionInterface>
#include <QtUiPlugin/QDesignerCustomWidgetInterface>

class vtkMRMLScene; // only a name, for the connections in the .ui file; what is passed is a PyObject*

/// The root of a panel, which hands the scene on. isEntered is qSlicerAbstractModuleWidget's.
class qMRMLWidget : public QWidget
{
  Q_OBJECT
  Q_PROPERTY(bool isEntered MEMBER IsEntered)

public:
  explicit qMRMLWidget(QWidget* parent = nullptr)
    : QWidget(parent)
  {
  }

public Q_SLOTS:
  void setMRMLScene(PyObject* scene) { emit mrmlSceneChanged(reinterpret_cast<vtkMRMLScene*>(scene)); }

Q_SIGNALS:
  void mrmlSceneChanged(vtkMRMLScene*);

private:
  bool IsEntered = false;
};

/// Chooses a node. It shows the chosen one only; as in Slicer it does not keep nodes alive, and forgets removed ones.
class qMRMLNodeComboBox : public QWidget
{
  Q_OBJECT
  Q_PROPERTY(QStringList nodeTypes MEMBER NodeTypes)
  Q_PROPERTY(bool noneEnabled MEMBER NoneEnabled)
  Q_PROPERTY(bool addEnabled MEMBER AddEnabled)
  Q_PROPERTY(bool removeEnabled MEMBER RemoveEnabled)
  Q_PROPERTY(bool renameEnabled MEMBER RenameEnabled)
  Q_PROPERTY(bool editEnabled MEMBER EditEnabled)
  Q_PROPERTY(bool showHidden MEMBER ShowHidden)
  Q_PROPERTY(bool showChildNodeTypes MEMBER ShowChildNodeTypes)
  Q_PROPERTY(bool selectNodeUponCreation MEMBER SelectNodeUponCreation)
  Q_PROPERTY(QString noneDisplay MEMBER NoneDisplay)
  Q_PROPERTY(QString currentNodeID READ currentNodeID NOTIFY currentNodeIDChanged)

public:
  explicit qMRMLNodeComboBox(QWidget* parent = nullptr)
    : QWidget(parent)
    , Box(new QComboBox)
  {
    auto* layout = new QVBoxLayout(this);
    layout->setContentsMargins(0, 0, 0, 0);
    layout->addWidget(this->Box);
  }

  /// A new reference.
  Q_INVOKABLE PyObject* currentNode() const;
  QString currentNodeID() const { return this->NodeID; }
  /// How often a scene was given, for tests of the .ui file's connections.
  Q_INVOKABLE int sceneCount() const { return this->SceneCount; }

public Q_SLOTS:
  void setMRMLScene(vtkMRMLScene*) { ++this->SceneCount; }
  void setCurrentNode(PyObject* node);

Q_SIGNALS:
  void currentNodeIDChanged(const QString&);
  void currentNodeChanged(bool);

private:
  QComboBox* Box;
  QStringList NodeTypes;
  QString NodeID, NoneDisplay;
  bool NoneEnabled = false, AddEnabled = true, RemoveEnabled = true, RenameEnabled = false, EditEnabled = true;
  bool ShowHidden = false, ShowChildNodeTypes = true, SelectNodeUponCreation = true;
  int SceneCount = 0;
};

/// Only the look of the real one.
class qMRMLSegmentationShow3DButton : public ctkMenuButton
{
  Q_OBJECT

public:
  explicit qMRMLSegmentationShow3DButton(QWidget* parent = nullptr)
    : ctkMenuButton(parent)
  {
    this->setText("Show 3D");
  }

public Q_SLOTS:
  void setSegmentationNode(PyObject* node) { this->setEnabled(node != Py_None); }
};

/// What Python may make itself, not only the .ui file: ``slicer.qMRMLWidget()``.
class Constructors : public QObject
{
  Q_OBJECT

public Q_SLOTS:
  qMRMLWidget* new_qMRMLWidget(QWidget* parent = nullptr) { return new qMRMLWidget(parent); }
  void delete_qMRMLWidget(qMRMLWidget* widget) { delete widget; }
};

/// One class that .ui files may name.
class CustomWidget : public QDesignerCustomWidgetInterface
{
public:
  typedef QWidget* (*Maker)(QWidget* parent);

  CustomWidget(const char* name, Maker maker, bool container)
    : Name(name)
    , Make(maker)
    , Container(container)
  {
  }

  QString name() const override { return this->Name; }
  QWidget* createWidget(QWidget* parent) override { return this->Make(parent); }
  bool isContainer() const override { return this->Container; }
  QString group() const override { return QString(); }
  QString toolTip() const override { return QString(); }
  QString whatsThis() const override { return QString(); }
  QString includeFile() const override { return QString(); }
  QIcon icon() const override { return QIcon(); }

private:
  QString Name;
  Maker Make;
  bool Container;
};

/// The static plugin through which QUiLoader finds them.
class CustomWidgets : public QObject, public QDesignerCustomWidgetCollectionInterface
{
  Q_OBJECT
  Q_INTERFACES(QDesignerCustomWidgetCollectionInterface)
  Q_PLUGIN_METADATA(IID "org.qt-project.Qt.QDesignerCustomWidgetCollectionInterface")

public:
  QList<QDesignerCustomWidgetInterface*> customWidgets() const override;
};
